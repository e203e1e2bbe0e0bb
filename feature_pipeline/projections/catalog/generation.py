"""Generations: the real tables behind a view, of which one is live and one is wanted."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import UpcasterDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.projections.catalog import ddl, own_views
from feature_pipeline.projections.catalog.bookkeeping import (
    ensure_schemas,
    has_bookkeeping,
    has_table,
)
from feature_pipeline.projections.catalog.database import (
    BOOKKEEPING_SCHEMA,
    READ_SCHEMA,
    Connection,
    existing_tables,
    fetch_one,
    fetch_value,
    lock,
)
from feature_pipeline.projections.catalog.own_views import ViewState
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import check_free, comment, restore, view_query

# Makes the table neither show nor want generations that no longer exist.
_UNLINK_LOST: Final = """
with there as (select id from feature_pipeline.generations)
update feature_pipeline.tables set live = (select id from there where id = live),
wanted = coalesce((select id from there where id = wanted),
(select id from there where id = live)),
is_pinned = is_pinned and live in (table there) and wanted in (table there)
where name = %s"""

# Ends the generation's claim to its request: which one was it?
_END_REQUEST: Final = """
update feature_pipeline.generations g set token = '' from
(select id, token from feature_pipeline.generations where id = %s) before
where g.id = before.id returning before.token"""

# Records why a generation was discarded.
_RECORD_DISCARDED: Final = """
insert into feature_pipeline.discarded (table_name, relation, reason) values (%s, %s, %s)
on conflict (table_name, relation) do update set reason = excluded.reason,
discarded_at = now()"""

# Was a generation of the table discarded within this time?
_DISCARDED_LATELY: Final = """
select exists (select from feature_pipeline.discarded where table_name = %s
and discarded_at > now() - %s::interval)"""

# Which generation was the last to be discarded since this time, and why?
_WHY_DISCARDED: Final = """
select relation, reason from feature_pipeline.discarded
where table_name = %s and discarded_at >= %s order by discarded_at desc limit 1"""

# Was this generation discarded?
_IS_DISCARDED: Final = """
select exists (select from feature_pipeline.discarded where table_name = %s
and relation = %s)"""

# Does the table follow this definition?
_IS_CURRENT_DEFINITION: Final = """
select exists (select from feature_pipeline.tables t
join feature_pipeline.definitions d on d.table_name = t.name
and d.seq = t.wanted_order where t.name = %s and d.digest = %s)"""

# Does the table follow this definition, or a later one?
_IS_FOLLOWED: Final = """
select exists (select from feature_pipeline.tables t
join feature_pipeline.definitions d on d.table_name = t.name
and d.seq <= t.wanted_order where t.name = %s and d.digest = %s)"""

# Whose table is it, and what are its live and its wanted generation?
_READ_TABLE: Final = """
select t.dataset, t.hook, t.live, t.wanted, t.is_pinned, g.*
from feature_pipeline.tables t
left join ({}) g on g.id in (t.live, t.wanted) where t.name = %s"""

# Records which hook the table belongs to.
_CREATE_TABLE: Final = """
insert into feature_pipeline.tables (name, dataset, hook) values (%s, %s, %s)
on conflict (name) do nothing"""

# Makes the table want this generation, and follow this definition.
_FOLLOW: Final = """
update feature_pipeline.tables set wanted = %s, wanted_order = %s, is_pinned = false
where name = %s"""

# Records the time that a table of the past shows.
_RECORD_TIME: Final = """
insert into feature_pipeline.past_tables (table_name, as_of) values (%s, %s)
on conflict (table_name) do update set as_of = excluded.as_of"""

# Records a generation and its columns.
_RECORD_GENERATION: Final = """
insert into feature_pipeline.generations
(id, table_name, relation, digest, columns, upcasters, token)
values (%s, %s, %s, %s, %s, %s, %s)"""

# Creates the table of a generation's outcomes, to be attached as a partition.
_CREATE_OUTCOMES_PARTITION: Final = """
create table {} (like feature_pipeline.outcomes including all,
constraint is_of_generation check (generation = {}))"""

# Makes the definition the table's last one: which number does it have?
_MAKE_LAST_DEFINITION: Final = """
insert into feature_pipeline.definitions (table_name, digest, seq)
select %(name)s, %(digest)s, coalesce(max(seq), 0) + 1
from feature_pipeline.definitions where table_name = %(name)s
on conflict (table_name, digest) do update set seq = excluded.seq, seen_at = now()
returning seq"""


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
    is_there: bool = True
    """Whether its real table exists."""
    is_whole: bool = True
    """Whether that table, and the one of its outcomes, have what loads and the view need.

    That is without a primary key as long as it was never read.
    """
    is_keyed: bool = True
    """Whether that table has its primary key (`ensure_key`)."""

    @property
    def identifier(self) -> sql.Identifier:
        """The table's qualified name."""
        return sql.Identifier(BOOKKEEPING_SCHEMA, self.relation)

    @property
    def outcomes(self) -> sql.Identifier:
        """The partition of `outcomes` that belongs to it."""
        return sql.Identifier(BOOKKEEPING_SCHEMA, outcomes_partition(self.id))


@dataclass(frozen=True, slots=True)
class TableState:
    """The generation of a table that is read, and the one, if another, that is being built.

    `live` is None until a first generation was proved, and again if its real table was dropped by
    hand. One of the two always exists.
    """

    live: Generation | None
    building: Generation | None
    is_pinned: bool
    lost: tuple[str, ...] = ()
    """The live and the wanted generation, if their tables were dropped or altered."""

    @property
    def wanted(self) -> Generation:
        """The generation that the definition asks for."""
        wanted = self.building or self.live
        assert wanted is not None  # noqa: S101
        return wanted

    @property
    def write_targets(self) -> tuple[Generation, ...]:
        """The generations that a batch is loaded into, the wanted one first."""
        generations = (self.building, self.live)
        return tuple(g for g in generations if g is not None and g.is_whole)


def lock_table(connection: Connection, name: str, *, is_shared: bool = False) -> None:
    """Hold the table's lock until the transaction ends.

    Loads share it, so that none is running while generations are created, dropped or switched.
    """
    lock(connection, "table", name, is_shared=is_shared)


def outcomes_partition(generation: int) -> str:
    """Return the name of the generation's partition of `outcomes`."""
    return f"_outcomes_{generation}"


def ensure_table(connection: Connection, spec: TableSpec) -> TableState:
    """Create the table's wanted generation if necessary, and its view if it is live; load nothing.

    A definition that is not recorded yet is the newest. One that is recorded and is not the last
    belongs to older code that still runs, and changes nothing. If the view or a generation that
    the bookkeeping lists was dropped or altered, it is created again.

    Raises:
        ConflictError: Another hook's table has this name, or another object has the view's.
        ProjectionError: PostgreSQL refused something.
    """
    ensure_schemas(connection)
    state = read_table(connection, spec)
    if state is not None and _needs_nothing(connection, spec, state):
        return state
    with connection.transaction():
        lock_table(connection, spec.name)
        _forget_lost(connection, spec)
        state = read_table(connection, spec)
        if state is None:
            return _create_table(connection, spec)
        if state.live is None:
            check_free(connection, spec.name)
        elif state.live.is_whole:
            restore(connection, state.live, spec)
        if not is_followed(connection, spec):
            _follow_definition(connection, state, spec, _next_order(connection, spec))
        elif not state.wanted.is_whole:
            _set_wanted(
                connection, spec, _create_generation(connection, _spec_of(spec, state.wanted))
            )
        elif _is_left_behind(connection, spec, state):
            _follow_definition(connection, state, spec, _order(connection, spec))
    return require_table(connection, spec)


def _needs_nothing(connection: Connection, spec: TableSpec, state: TableState) -> bool:
    if state.lost or not is_followed(connection, spec) or _is_left_behind(connection, spec, state):
        return False
    # A changed view is restored when the table is settled, which waits for readers.
    return state.live is None or own_views.find_view(connection, spec.name).is_own


def _is_left_behind(connection: Connection, spec: TableSpec, state: TableState) -> bool:
    """Return whether the newest definition's generation was dropped by hand."""
    return state.wanted.digest != spec.generation_digest and is_current_definition(connection, spec)


def _spec_of(spec: TableSpec, generation: Generation) -> TableSpec:
    """Return the table as a generation has it, which older code may have to create again."""
    return replace(spec, columns=generation.columns, upcasters=generation.upcasters, indexes=())


def _live_id(connection: Connection, spec: TableSpec) -> int | None:
    row = fetch_one(
        connection, "select live from feature_pipeline.tables where name = %s", [spec.name]
    )
    return None if row is None else row[0]


def _forget_lost(connection: Connection, spec: TableSpec) -> None:
    """Remove generations whose tables were dropped or altered, except the live one.

    A live one that is only altered is read until another one was built.

    Args:
        connection: In a transaction that holds the table's lock.
        spec: The table.
    """
    live = _live_id(connection, spec)
    for generation in list_generations(connection, spec, is_whole=False):
        if not generation.is_there or not (generation.is_whole or generation.id == live):
            with suppress(psycopg.errors.DependentObjectsStillExist), connection.transaction():
                drop_generation(connection, generation)
    # A generation that is gone is neither read nor wanted.
    connection.execute(_UNLINK_LOST, [spec.name])


def adopt_definition(connection: Connection, spec: TableSpec) -> TableState:
    """Make `spec` the definition that the table follows, even if a later one was seen.

    For users who go back to older code on purpose; a run never does this by itself.
    """
    ensure_table(connection, spec)
    with connection.transaction():
        lock_table(connection, spec.name)
        state = require_table(connection, spec)
        if not is_current_definition(connection, spec):
            _follow_definition(connection, state, spec, _next_order(connection, spec))
    return require_table(connection, spec)


def request_rebuild(connection: Connection, spec: TableSpec, token: str) -> TableState:
    """Request a generation for `token` with the columns of `spec`; repeating it adds none.

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
                f"table {spec.name!r} follows a later definition than this code's: deploy the later"
                " code, or go back to this definition with `feature-pipeline rebuild`"
            )
        known = fetch_one(
            connection,
            "select id from feature_pipeline.generations where table_name = %s and token = %s",
            [spec.name, token],
        )
        if known is None:
            wanted = _create_generation(connection, spec, token)
            _set_wanted(connection, spec, wanted)
    return require_table(connection, spec)


DISCARDED_FOR: Final = "1 hour"
"""A table whose generation was discarded within this time is not built again automatically."""


def build_anew(connection: Connection, spec: TableSpec, generation: Generation) -> None:
    """Request a generation of the same columns, and for the same request, in place of this one.

    Args:
        connection: In a transaction that holds the table's lock.
        spec: The table.
        generation: The one that is being built.
    """
    token = fetch_value(connection, _END_REQUEST, [generation.id])
    _set_wanted(connection, spec, _create_generation(connection, _spec_of(spec, generation), token))


def record_discarded(
    connection: Connection, spec: TableSpec, generation: Generation, reason: str
) -> None:
    """Record that the generation's rows differ from the archive's."""
    connection.execute(_RECORD_DISCARDED, [spec.name, generation.relation, reason])


def discarded_lately(connection: Connection, spec: TableSpec) -> bool:
    """Return whether a generation of the table was discarded within `DISCARDED_FOR`."""
    return bool(fetch_value(connection, _DISCARDED_LATELY, [spec.name, DISCARDED_FOR]))


def why_discarded(connection: Connection, spec: TableSpec, building: Generation) -> str | None:
    """Return why the generation before the one being built was discarded, if it was."""
    if not has_table(connection, "discarded"):
        return None
    row = fetch_one(connection, _WHY_DISCARDED, [spec.name, building.created_at])
    return None if row is None else f"generation {row[0]} was discarded: {row[1]}"


def is_discarded(connection: Connection, spec: TableSpec, generation: Generation) -> bool:
    """Return whether the generation's rows were found to differ from the archive's."""
    return bool(fetch_value(connection, _IS_DISCARDED, [spec.name, generation.relation]))


def is_current_definition(connection: Connection, spec: TableSpec) -> bool:
    """Return whether the table follows `spec`, rather than a definition seen later."""
    return bool(
        fetch_value(connection, _IS_CURRENT_DEFINITION, [spec.name, str(spec.definition_digest)])
    )


def is_followed(connection: Connection, spec: TableSpec) -> bool:
    """Return whether `ensure_table` has nothing to do: the table follows or followed `spec`."""
    return bool(fetch_value(connection, _IS_FOLLOWED, [spec.name, str(spec.definition_digest)]))


def read_table(connection: Connection, spec: TableSpec) -> TableState | None:
    """Return the current state of the table, None if it does not exist. Changes nothing.

    The bookkeeping is trusted only about generations whose real tables exist.

    Raises:
        ConflictError: Another hook's table has this name.
    """
    if not has_bookkeeping(connection):
        return None
    # One statement: between two, a switch could drop what the first one named.
    rows = connection.execute(
        sql.SQL(_READ_TABLE).format(sql.SQL(_GENERATIONS)),
        [spec.name],
    ).fetchall()
    if not rows:
        return None
    dataset, hook, live, wanted, is_pinned = rows[0][:5]
    if (dataset, hook) != (spec.dataset, spec.hook):
        raise ConflictError(
            f"table {spec.name!r} already shows {dataset}/features/{hook}, so it cannot show"
            f" {spec.asset}: give one of them another table name, or drop the old table with"
            f" `feature-pipeline retire {spec.name}`"
        )
    generations = {row[5]: _generation(row[5:]) for row in rows if row[5] is not None}
    there = {number: g for number, g in generations.items() if g.is_there}
    read = there.get(live)
    building = there.get(wanted) if wanted != live else None
    if read is None and building is None:
        return None
    lost = tuple(
        generations[number].relation if number in generations else f"number {number}"
        for number in dict.fromkeys((live, wanted))
        if number is not None and not (number in there and there[number].is_whole)
    )
    return TableState(read, building, is_pinned, lost)


def require_table(connection: Connection, spec: TableSpec) -> TableState:
    """Return the current state of the table.

    Raises:
        NotFoundError: It does not exist.
    """
    state = read_table(connection, spec)
    if state is None:
        raise NotFoundError(
            f"table {spec.name!r} of {spec.asset} does not exist: materialize it first"
        )
    return state


def list_generations(
    connection: Connection, spec: TableSpec, *, is_whole: bool = True
) -> list[Generation]:
    """Return every generation of the table, oldest first.

    Args:
        connection: To the table's database.
        spec: The table.
        is_whole: Leave out those whose tables were dropped or altered by hand.
    """
    rows = connection.execute(
        sql.SQL("select * from ({}) g where g.table_name = %s order by g.id").format(
            sql.SQL(_GENERATIONS)
        ),
        [spec.name],
    )
    generations = [_generation(row) for row in rows]
    return [generation for generation in generations if generation.is_whole or not is_whole]


def empty_generation(connection: Connection, generation: Generation) -> list[str]:
    """Remove all rows of a generation that is not live; return the batches that it had.

    It waits for loads that are under way. What they have loaded is removed with the rest.
    """
    with connection.transaction():
        # Those that only claim records (`rows.withhold`) are loaded again, too.
        owners = connection.execute(
            sql.SQL("select distinct batch from {}").format(generation.outcomes)
        ).fetchall()
        # In the order in which a load locks them.
        connection.execute(
            sql.SQL("truncate {}, {}").format(generation.outcomes, generation.identifier)
        )
        if has_table(connection, "left_out"):
            connection.execute(
                "delete from feature_pipeline.left_out where generation = %s", [generation.id]
            )
        removed = connection.execute(
            "delete from feature_pipeline.progress where generation = %s returning batch",
            [generation.id],
        ).fetchall()
        return sorted({row[0] for row in (*owners, *removed)})


def ensure_key(connection: Connection, generation: Generation) -> None:
    """Build the primary key of a generation that was loaded without it, unless it has one.

    It waits for loads that are under way, and others wait for it.

    Args:
        connection: In no transaction.
        generation: The generation.

    Raises:
        psycopg.IntegrityError: It has a row twice, which no load writes.
        psycopg.Error: PostgreSQL cannot build it, or the table was dropped.
    """
    if generation.is_keyed:
        return
    with connection.transaction():
        lock_table(connection, generation.table_name, is_shared=True)
        # One process builds it, and holds nothing that loads under way could wait for.
        lock(connection, "key", generation.id)
        is_there = fetch_value(
            connection,
            "select exists (select from pg_index where indrelid = to_regclass(%s)"
            " and indisprimary)",
            [generation.identifier.as_string(connection)],
        )
        if not is_there:
            connection.execute(ddl.add_key(generation.relation))


def drop_generation(connection: Connection, generation: Generation) -> None:
    """Drop the generation with its outcomes and progress. It is neither live nor wanted."""
    for name in (generation.relation, outcomes_partition(generation.id)):
        if existing_tables(connection, [name]):
            connection.execute(
                sql.SQL("drop table {}").format(sql.Identifier(BOOKKEEPING_SCHEMA, name))
            )
    connection.execute(
        "delete from feature_pipeline.progress where generation = %s", [generation.id]
    )
    if has_table(connection, "left_out"):
        connection.execute(
            "delete from feature_pipeline.left_out where generation = %s", [generation.id]
        )
    connection.execute("delete from feature_pipeline.generations where id = %s", [generation.id])


def drop_table(connection: Connection, spec: TableSpec) -> bool:
    """Drop the view, its generations and their bookkeeping; return whether there was anything.

    A view of its name that is not the pipeline's stays.

    Raises:
        ConflictError: Something depends on it, or it is another hook's; nothing is dropped.
    """
    read_table(connection, spec)  # another hook's is not dropped
    if not has_bookkeeping(connection):
        return False
    ensure_schemas(connection)
    try:
        with connection.transaction():
            return _drop_table(connection, spec)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise ConflictError(
            f"table {spec.name!r} was not dropped: {error.diag.message_detail}; drop that first"
        ) from error


def _drop_table(connection: Connection, spec: TableSpec) -> bool:
    lock_table(connection, spec.name)
    state = read_table(connection, spec)
    _drop_view(connection, spec, None if state is None else state.live)
    for generation in list_generations(connection, spec, is_whole=False):
        drop_generation(connection, generation)
    own_views.forget_view(connection, spec.name)
    for known in ("definitions", "switches", "discarded"):
        connection.execute(
            sql.SQL("delete from {} where table_name = %s").format(
                sql.Identifier(BOOKKEEPING_SCHEMA, known)
            ),
            [spec.name],
        )
    deleted = connection.execute("delete from feature_pipeline.tables where name = %s", [spec.name])
    return bool(deleted.rowcount)


def _drop_view(connection: Connection, spec: TableSpec, live: Generation | None) -> None:
    own_view = own_views.find_view(connection, spec.name)
    is_own = own_view.is_own or (
        own_view.state is ViewState.UNKNOWN
        and live is not None
        and own_views.is_defined_as(connection, spec.name, view_query(live))
    )
    if is_own:
        view = sql.Identifier(READ_SCHEMA, spec.name)
        connection.execute(sql.SQL("drop view {}").format(view))


def _create_table(connection: Connection, spec: TableSpec) -> TableState:
    """Create the table with a wanted generation; none is read until it was proved."""
    check_free(connection, spec.name)
    connection.execute(_CREATE_TABLE, [spec.name, spec.dataset, spec.hook])
    _record_time(connection, spec)
    # Of a table that was lost the order of its definitions is still known.
    order = (
        _order(connection, spec) if is_followed(connection, spec) else _next_order(connection, spec)
    )
    generation = _create_generation(connection, spec)
    connection.execute(_FOLLOW, [generation.id, order, spec.name])
    return require_table(connection, spec)


def _follow_definition(
    connection: Connection, state: TableState, spec: TableSpec, order: int
) -> None:
    """Make the generation of `spec` the wanted one, under the table's lock."""
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
    _record_time(connection, spec)
    _set_wanted(connection, spec, wanted)
    connection.execute(
        "update feature_pipeline.generations set columns = %s where id = %s",
        [_columns_json(spec.columns), wanted.id],
    )
    if state.live is not None and wanted.id == state.live.id:
        comment(connection, _by_id(connection, spec, wanted.id), spec)


def _record_time(connection: Connection, spec: TableSpec) -> None:
    """Record the time of a table of the past."""
    if spec.as_of is not None:
        connection.execute(_RECORD_TIME, [spec.name, spec.as_of])


def _set_wanted(connection: Connection, spec: TableSpec, generation: Generation) -> None:
    connection.execute(
        "update feature_pipeline.tables set wanted = %s where name = %s",
        [generation.id, spec.name],
    )
    connection.execute(
        "update feature_pipeline.generations set fill_requested_at = null where id = %s",
        [generation.id],
    )


def _create_generation(connection: Connection, spec: TableSpec, token: str = "") -> Generation:
    number, relation = _free_name(connection, spec)
    connection.execute(
        _RECORD_GENERATION,
        [
            number,
            spec.name,
            relation,
            str(spec.generation_digest),
            _columns_json(spec.columns),
            json.dumps([upcaster.model_dump(mode="json") for upcaster in spec.upcasters]),
            token,
        ],
    )
    # Rows are loaded faster without the key, which is needed once a record has to be found.
    connection.execute(ddl.create_table(relation, spec.columns, is_keyed=False))
    partition = sql.Identifier(BOOKKEEPING_SCHEMA, outcomes_partition(number))
    # Made apart and attached: "partition of" would lock readers of every table's outcomes out.
    connection.execute(sql.SQL(_CREATE_OUTCOMES_PARTITION).format(partition, sql.Literal(number)))
    connection.execute(
        sql.SQL(
            "alter table feature_pipeline.outcomes attach partition {} for values in ({})"
        ).format(partition, sql.Literal(number))
    )
    return _by_id(connection, spec, number)


def _free_name(connection: Connection, spec: TableSpec) -> tuple[int, str]:
    """Return a number that no generation or object with its name has."""
    while True:
        number = fetch_value(
            connection,
            "select nextval(pg_get_serial_sequence('feature_pipeline.generations', 'id'))::integer",
        )
        relation = ddl.relation_name(spec, number)
        if not any(
            own_views.describe_relation(connection, BOOKKEEPING_SCHEMA, name)
            for name in (relation, outcomes_partition(number))
        ):
            return number, relation


def _order(connection: Connection, spec: TableSpec) -> int:
    """Return the number of the definition that the table follows."""
    query = "select wanted_order from feature_pipeline.tables where name = %s"
    return int(fetch_value(connection, query, [spec.name]))


def _next_order(connection: Connection, spec: TableSpec) -> int:
    """Make `spec` the last definition of its table, under the table's lock; return its number."""
    return int(
        fetch_value(
            connection,
            _MAKE_LAST_DEFINITION,
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


# Each generation beside what PostgreSQL has of it, from the catalog itself: functions that look a
# name up do not see what this statement's snapshot sees.
_GENERATIONS: Final = """
select g.id, g.table_name, g.relation, g.digest, g.columns, g.upcasters, g.created_at,
    g.switched_at, c.oid is not null as is_there,
    array(
        select array[a.attname::text, format_type(a.atttypid, a.atttypmod),
            (a.attnotnull and not a.atthasdef and a.attidentity = '')::text]
        from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as attributes,
    exists (
        select from pg_index x where x.indrelid = c.oid and x.indisprimary and x.indisvalid
        and array(
            select a.attname::text from unnest(x.indkey) with ordinality k (number, place)
            join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number order by k.place
            ) = array['record_id', 'ordinal']) as is_keyed,
    exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary) as has_key,
    exists (
        select from pg_inherits i join pg_class o on o.oid = i.inhrelid
        join pg_class p on p.oid = i.inhparent
        where o.relname = '_outcomes_' || g.id and p.relname = 'outcomes'
        and n.oid in (o.relnamespace, p.relnamespace) and o.relnamespace = p.relnamespace
        ) as has_outcomes
from feature_pipeline.generations g
join pg_namespace n on n.nspname = 'feature_pipeline'
left join pg_class c on c.relnamespace = n.oid and c.relname = g.relation and c.relkind = 'r'"""


def _generation(row: tuple[Any, ...]) -> Generation:
    number, table_name, relation, digest, columns, upcasters, created_at, switched_at = row[:8]
    is_there, attributes, is_keyed, has_key, has_outcomes = row[8:]
    declared = tuple(Column.model_validate(column) for column in columns)
    types = ddl.column_types(declared)
    has_columns = types.items() <= {name: kind for name, kind, _ in attributes}.items()
    # A foreign column that must not be null keeps all rows out.
    is_unread = switched_at is None and not has_key
    is_open = not any(name not in types and needed == "true" for name, _, needed in attributes)
    return Generation(
        id=number,
        table_name=table_name,
        relation=relation,
        digest=Digest.parse(digest),
        columns=declared,
        upcasters=tuple(UpcasterDefinition.model_validate(upcaster) for upcaster in upcasters),
        created_at=created_at,
        switched_at=switched_at,
        is_there=is_there,
        is_whole=is_there and has_columns and is_open and (is_keyed or is_unread) and has_outcomes,
        is_keyed=is_keyed,
    )
