"""Put a new table in the place of the one that the server uses, in one transaction.

The server continues to read and write: it waits for the transaction, which waits for nothing but
the lock. Rows that it wrote while the new table was filled come along.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeVar

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError, ProjectionError
from feature_pipeline.model.digest import document_bytes
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.osa.restore.shape import (
    CATALOGUE_VERSION,
    SCHEMA,
    Existing,
    Shape,
    dependents,
    existing,
    quoted_name,
    relation,
    sequence_of,
)
from feature_pipeline.projections.catalog.database import Connection, fetch_value
from feature_pipeline.projections.catalog.dependents import grants_of, replace_grants

LOCK_TIMEOUT: Final = "2s"
LOCK_SECONDS: Final = 60.0
"""How long one attempt waits for the lock: the server's own transactions take milliseconds."""
_BACKOFF_SECONDS: Final = 0.2

T = TypeVar("T")

# Which rows did the server write after this id was given? A record's rows are written as a whole.
_WRITTEN: Final = "select count(*) from {live} where id > {watermark}"

_FORGET: Final = """
delete from {new} where record_srn in (select record_srn from {live} where id > {watermark})"""

_CARRY: Final = """
insert into {new} ({columns}) select {columns} from {live}
where record_srn in (select record_srn from {live} where id > {watermark}) order by id"""

# Which relations of the schema have these names, and of which table are they?
_NAMED: Final = """
select c.relname, c.relkind::text, t.oid, t.relname
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
left join pg_class as t on t.oid = coalesce(
(select indrelid from pg_index where indexrelid = c.oid),
(select refobjid from pg_depend where classid = 'pg_class'::regclass and objid = c.oid
and refclassid = 'pg_class'::regclass and deptype in ('a', 'i') limit 1))
where n.nspname = %s and c.relname = any(%s) order by 1"""

_CATALOGUE: Final = """
insert into public.feature_tables (hook_name, pg_table, feature_schema, schema_version, created_at)
values (%s, %s, %s, %s, now()) on conflict (hook_name) do nothing"""


def with_lock(connection: Connection, table: str, action: Callable[[], T]) -> T:
    """Carry out a transaction that locks a table of the server; repeat it if the lock is busy.

    Raises:
        ProjectionError: The lock was not free for a minute.
    """
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with connection.transaction():
                connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
                return action()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > end:
                raise ProjectionError(
                    f"{quoted_name(table)} could not be locked within {LOCK_TIMEOUT} at any"
                    " attempt: nothing was replaced; find the session that uses it in"
                    " pg_stat_activity, or run the command again"
                ) from error
        time.sleep(random.uniform(0, _BACKOFF_SECONDS))  # noqa: S311


def watermark(connection: Connection, table: str) -> int:
    """Return an id such that every row that is committed from now on has a higher one.

    A writer gets its ids while it has a lock that excludes this one.
    """

    def look() -> int:
        connection.execute(sql.SQL("lock table {} in share mode").format(relation(table)))
        return last_id(connection, table)

    return with_lock(connection, table, look)


def last_id(connection: Connection, table: str) -> int:
    """Return the highest id that the table's sequence gave or that a row has."""
    statement = sql.SQL("select coalesce(max(id), 0) from {}").format(relation(table))
    sequence = sequence_of(connection, table)
    last = sequence[1] if sequence else None
    return max(int(fetch_value(connection, statement)), last or 0)


@dataclass(frozen=True, slots=True)
class Replaced:
    """The result of replacing a table."""

    old: str | None
    """The name of the table that was replaced; None if there was none."""
    carried: int
    """Rows that the server had written meanwhile."""


def check_replaceable(connection: Connection, shape: Shape, live: Existing | None) -> None:
    """Check that the names are free, and nothing is built upon the table that would stay with it.

    Raises:
        ConflictError: Names what is built upon it, or has one of the names.
    """
    named = connection.execute(_NAMED, [SCHEMA, list(shape.fixed.values())])
    for name, _, owner, table in named:
        if live is None or owner != live.oid:
            whose = "another relation" if table is None else quoted_name(table)
            raise ConflictError(
                f"{SCHEMA}.{name}, a name that {quoted_name(shape.table)} needs, is of {whose}:"
                " rename or drop it first"
            )
    if live is not None and (upon_it := dependents(connection, live.oid)):
        raise ConflictError(
            f"{quoted_name(shape.table)} cannot be replaced, because these would stay with the old"
            f" table: {first_few(upon_it)}. Drop them, restore, and create them again"
        )


def replace_table(
    connection: Connection, shape: Shape, live: Existing | None, mark: int, highest: int
) -> Replaced:
    """Rename the table that the server uses away, and the new one to its name.

    Args:
        connection: A session of the tables' owner.
        shape: The table.
        live: The table that the server uses; None if there is none.
        mark: The `watermark` before the new table was filled.
        highest: The highest id that is known to have been used.

    Raises:
        ConflictError: Something was built upon the table meanwhile, or it was replaced.
        ProjectionError: The lock was not free for a minute.
    """
    return with_lock(
        connection, shape.table, lambda: _replace(connection, shape, live, mark, highest)
    )


def _replace(
    connection: Connection, shape: Shape, live: Existing | None, mark: int, highest: int
) -> Replaced:
    present = existing(connection, shape.table)
    if present is not None:
        statement = sql.SQL("lock table {} in access exclusive mode")
        connection.execute(statement.format(relation(shape.table)))
        present = existing(connection, shape.table)
    if (present and present.oid) != (live and live.oid):
        raise ConflictError(
            f"{quoted_name(shape.table)} was created, replaced or dropped while it was restored:"
            " nothing was replaced; run the command again"
        )
    carried, old = 0, None
    built = existing(connection, shape.building)
    new_sequence = sequence_of(connection, shape.building)
    if built is None or new_sequence is None:
        raise ConflictError(f"{quoted_name(shape.building)} was dropped while it was filled")
    check_replaceable(connection, shape, live)
    if live is not None:
        carried = _carry(connection, shape, mark)
        highest = max(highest, last_id(connection, shape.table))
        grants = grants_of(connection, live.oid)
        old_sequence = sequence_of(connection, shape.table)
        old = _move_away(connection, shape, live)
        replace_grants(connection, relation(shape.building), grants)
        if old_sequence is not None:
            oid = fetch_value(
                connection,
                "select pg_get_serial_sequence(%s, 'id')::regclass::oid",
                [quoted_name(old)],
            )
            replace_grants(connection, new_sequence[0], grants_of(connection, oid))
    highest = max(highest, last_id(connection, shape.building))
    connection.execute(
        "select setval(%s::regclass, %s, %s)",
        [new_sequence[0].as_string(connection), max(1, highest), highest > 0],
    )
    _rename("table", connection, relation(shape.building), shape.table)
    _rename("sequence", connection, new_sequence[0], shape.fixed["sequence"])
    for what in ("key", "record_srn", "run_id"):
        _rename("index", connection, relation(building_index(shape, what)), shape.fixed[what])
    document = document_bytes(dict(shape.document)).decode()
    connection.execute(_CATALOGUE, [shape.hook, shape.table, document, CATALOGUE_VERSION])
    return Replaced(old, carried)


def building_index(shape: Shape, what: str) -> str:
    """Return the name of an index of the table that is filled."""
    return f"restoring-{shape.hook}-{what}"


def _carry(connection: Connection, shape: Shape, mark: int) -> int:
    parts = {
        "new": relation(shape.building),
        "live": relation(shape.table),
        "watermark": sql.Literal(mark),
        "columns": shape.selected(),
    }
    written = int(fetch_value(connection, sql.SQL(_WRITTEN).format(**parts)))
    if written:
        connection.execute(sql.SQL(_FORGET).format(**parts))
        return connection.execute(sql.SQL(_CARRY).format(**parts)).rowcount
    return 0


def _move_away(connection: Connection, shape: Shape, live: Existing) -> str:
    """Rename the server's table, and what has the names that the new one needs."""
    old = next(name for n in count(1) if existing(connection, name := shape.replaced(n)) is None)
    number = old.removeprefix(shape.replaced(1)) or "-1"
    kinds = {"i": "index", "S": "sequence"}
    named = connection.execute(_NAMED, [SCHEMA, list(shape.fixed.values())])
    names = {name: kind for name, kind, *_ in named}
    _rename("table", connection, relation(shape.table), old)
    for what, name in shape.fixed.items():
        if (kind := kinds.get(names.get(name, ""))) is not None:
            _rename(kind, connection, relation(name), f"replaced-{shape.hook}{number}-{what}")
    return old


def _rename(kind: str, connection: Connection, before: sql.Identifier, after: str) -> None:
    statement = sql.SQL("alter {} {} rename to {}")
    connection.execute(statement.format(sql.SQL(kind), before, sql.Identifier(after)))


def replaced_tables(connection: Connection, shape: Shape) -> list[str]:
    """Return the tables that were replaced and not dropped, the oldest first."""
    names: list[str] = []
    for number in count(1):
        name = shape.replaced(number)
        if existing(connection, name) is None:
            return names
        names.append(name)
    return names
