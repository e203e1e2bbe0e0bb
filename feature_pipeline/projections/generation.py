"""Generations: the real tables behind a view, which one is live, and which one is wanted.

What belongs here: creating, finding and dropping generations. Not here: rows (`load`), the change
of the live generation (`switch`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql

from feature_pipeline.columns import Column
from feature_pipeline.digest import Digest
from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.hooks.definition import UpcasterDefinition
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
from feature_pipeline.projections.view import comment, is_shown, put_back, show


@dataclass(frozen=True, slots=True)
class Generation:
    """One real table that a view shows, showed or will show."""

    id: int
    table_name: str
    relation: str
    digest: Digest
    columns: tuple[Column, ...]
    upcasters: tuple[UpcasterDefinition, ...]
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


def lock_table(connection: Connection, name: str, *, is_shared: bool = False) -> None:
    """Hold the table's lock until the transaction ends.

    Loads share it, so that none is under way while generations come, go or are switched.
    """
    lock(connection, "table", name, is_shared=is_shared)


def outcomes_partition(generation: int) -> str:
    """The name of the generation's partition of `outcomes`."""
    return f"_outcomes_{generation}"


def ensure_table(connection: Connection, spec: TableSpec) -> TableState:
    """The table's view, live generation and wanted generation exist; nothing is loaded.

    The first generation of a table is live from the start. Later ones are built beside it. A
    definition that was never seen before is the newest; one that was, and is not the last, is
    older code still running, and changes nothing. A view that somebody dropped is put back.

    Raises:
        ConflictError: Another hook's table has this name, or something else its view's.
        ProjectionError: PostgreSQL refused something.
    """
    ensure_schemas(connection)
    state = read_table(connection, spec)
    if state is not None and is_followed(connection, spec) and is_shown(connection, spec.name):
        return state
    with connection.transaction():
        lock_table(connection, spec.name)
        state = read_table(connection, spec)
        if state is None:
            return _create_table(connection, spec)
        put_back(connection, state.live, spec)
        if not is_followed(connection, spec):
            _follow_definition(connection, state, spec, _next_order(connection, spec))
    return require_table(connection, spec)


def adopt_definition(connection: Connection, spec: TableSpec) -> TableState:
    """`spec` is the definition that the table follows, even if a later one was seen.

    For people who go back to older code on purpose; a run never does this by itself.
    """
    ensure_table(connection, spec)
    with connection.transaction():
        lock_table(connection, spec.name)
        state = require_table(connection, spec)
        if not is_current_definition(connection, spec):
            _follow_definition(connection, state, spec, _next_order(connection, spec))
    return require_table(connection, spec)


def request_rebuild(connection: Connection, spec: TableSpec, token: str) -> TableState:
    """A generation made for `token` is wanted, with the columns of `spec`; repeating it adds none.

    Args:
        connection: To the table's database.
        spec: The table.
        token: Names the request: equal for every run of one backfill.

    Raises:
        ConflictError: Code with a later definition has been seen; this one builds nothing.
    """
    ensure_table(connection, spec)
    with connection.transaction():
        lock_table(connection, spec.name)
        if not is_current_definition(connection, spec):
            raise ConflictError(
                f"table {spec.name!r} follows a later definition than this code's: deploy that"
                " code, or go back to this one with `feature-pipeline rebuild`"
            )
        known = fetch_one(
            connection,
            "select id from feature_pipeline.generations where table_name = %s and token = %s",
            [spec.name, token],
        )
        if known is None:
            wanted = _create_generation(connection, spec, token)
            _want(connection, spec, wanted)
    return require_table(connection, spec)


def is_current_definition(connection: Connection, spec: TableSpec) -> bool:
    """Whether the table follows `spec`, rather than a definition seen later."""
    return bool(
        fetch_value(
            connection,
            "select exists (select from feature_pipeline.tables t"
            " join feature_pipeline.definitions d on d.table_name = t.name"
            " and d.seq = t.wanted_order where t.name = %s and d.digest = %s)",
            [spec.name, str(spec.definition_digest)],
        )
    )


def is_followed(connection: Connection, spec: TableSpec) -> bool:
    """Whether `ensure_table` has nothing to do: `spec` is, or was, the table's definition."""
    return bool(
        fetch_value(
            connection,
            "select exists (select from feature_pipeline.tables t"
            " join feature_pipeline.definitions d on d.table_name = t.name"
            " and d.seq <= t.wanted_order where t.name = %s and d.digest = %s)",
            [spec.name, str(spec.definition_digest)],
        )
    )


def read_table(connection: Connection, spec: TableSpec) -> TableState | None:
    """The table as it stands, None if it does not exist. Changes nothing.

    Raises:
        ConflictError: Another hook's table has this name.
    """
    if not has_bookkeeping(connection):
        return None
    # One statement: between two, a switch could drop what the first one named.
    rows = connection.execute(
        "select t.dataset, t.hook, t.live, t.wanted, t.is_pinned, g.id, g.table_name, g.relation,"
        " g.digest, g.columns, g.upcasters, g.created_at, g.switched_at"
        " from feature_pipeline.tables t"
        " left join feature_pipeline.generations g on g.id in (t.live, t.wanted)"
        " where t.name = %s",
        [spec.name],
    ).fetchall()
    if not rows:
        return None
    dataset, hook, live, wanted, is_pinned = rows[0][:5]
    if (dataset, hook) != (spec.dataset, spec.hook):
        raise ConflictError(
            f"table {spec.name!r} already shows {dataset}/features/{hook}, so it cannot show"
            f" {spec.asset}: give one of them another table name, or drop the old table"
        )
    if live is None:
        return None
    generations = {row[5]: _generation(row[5:]) for row in rows}
    building = generations[wanted] if wanted != live else None
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
        "select id, table_name, relation, digest, columns, upcasters, created_at, switched_at"
        " from feature_pipeline.generations where table_name = %s order by id",
        [spec.name],
    )
    return [_generation(row) for row in rows]


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
        lock_table(connection, spec.name)
        view = sql.Identifier(READ_SCHEMA, spec.name)
        connection.execute(sql.SQL("drop view if exists {}").format(view))
        for generation in list_generations(connection, spec):
            drop_generation(connection, generation)
        connection.execute("delete from feature_pipeline.tables where name = %s", [spec.name])
    return True


def _create_table(connection: Connection, spec: TableSpec) -> TableState:
    connection.execute(
        "insert into feature_pipeline.tables (name, dataset, hook) values (%s, %s, %s)"
        " on conflict (name) do nothing",
        [spec.name, spec.dataset, spec.hook],
    )
    order = _next_order(connection, spec)
    generation = _create_generation(connection, spec)
    connection.execute(
        "update feature_pipeline.tables set live = %s, wanted = %s, wanted_order = %s"
        " where name = %s",
        [generation.id, generation.id, order, spec.name],
    )
    connection.execute(
        "update feature_pipeline.generations set switched_at = now() where id = %s",
        [generation.id],
    )
    show(connection, generation)
    comment(connection, generation, spec)
    return require_table(connection, spec)


def _follow_definition(
    connection: Connection, state: TableState, spec: TableSpec, order: int
) -> None:
    """Make the wanted generation that of `spec`, under the table's lock."""
    wanted = state.wanted
    if wanted.digest != spec.generation_digest:
        # One that is there already, live before or begun and left, only has to catch up.
        known = [
            g for g in list_generations(connection, spec) if g.digest == spec.generation_digest
        ]
        wanted = known[-1] if known else _create_generation(connection, spec)
    connection.execute(
        "update feature_pipeline.tables set wanted_order = %s where name = %s", [order, spec.name]
    )
    _want(connection, spec, wanted)
    connection.execute(
        "update feature_pipeline.generations set columns = %s where id = %s",
        [_columns_json(spec.columns), wanted.id],
    )
    if wanted.id == state.live.id:
        comment(connection, _by_id(connection, spec, wanted.id), spec)


def _want(connection: Connection, spec: TableSpec, generation: Generation) -> None:
    connection.execute(
        "update feature_pipeline.tables set wanted = %s where name = %s",
        [generation.id, spec.name],
    )
    connection.execute(
        "update feature_pipeline.generations set fill_requested_at = null where id = %s",
        [generation.id],
    )


def _create_generation(connection: Connection, spec: TableSpec, token: str = "") -> Generation:
    number = fetch_value(
        connection,
        "insert into feature_pipeline.generations"
        " (table_name, relation, digest, columns, upcasters, token)"
        " values (%s, 'new', %s, %s, %s, %s) returning id",
        [
            spec.name,
            str(spec.generation_digest),
            _columns_json(spec.columns),
            json.dumps([upcaster.model_dump(mode="json") for upcaster in spec.upcasters]),
            token,
        ],
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


def _next_order(connection: Connection, spec: TableSpec) -> int:
    """Make `spec` the last definition of its table, under the table's lock; its number."""
    return int(
        fetch_value(
            connection,
            "insert into feature_pipeline.definitions (table_name, digest, seq)"
            " select %(name)s, %(digest)s, coalesce(max(seq), 0) + 1"
            " from feature_pipeline.definitions where table_name = %(name)s"
            " on conflict (table_name, digest) do update set seq = excluded.seq, seen_at = now()"
            " returning seq",
            {"name": spec.name, "digest": str(spec.definition_digest)},
        )
    )


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
    number, table_name, relation, digest, columns, upcasters, created_at, switched_at = row
    return Generation(
        id=number,
        table_name=table_name,
        relation=relation,
        digest=Digest.parse(digest),
        columns=tuple(Column.model_validate(column) for column in columns),
        upcasters=tuple(UpcasterDefinition.model_validate(upcaster) for upcaster in upcasters),
        created_at=created_at,
        switched_at=switched_at,
    )
