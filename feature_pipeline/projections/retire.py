"""List and drop tables that the bookkeeping has, with or without a definition."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.projections.catalog import dependents
from feature_pipeline.projections.catalog.bookkeeping import has_bookkeeping, has_table
from feature_pipeline.projections.catalog.database import (
    READ_SCHEMA,
    Connection,
    Database,
    fetch_value,
)
from feature_pipeline.projections.catalog.generation import Generation, drop_table, list_generations
from feature_pipeline.projections.catalog.own_views import ViewState, find_view
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.switch.switch import ATTEMPTS, LOCK_TIMEOUT

# How many batches and rows does the generation have?
_CONTENT: Final = """
select count(*), coalesce(sum(p.rows), 0)::bigint from feature_pipeline.progress p
join feature_pipeline.tables t on t.live = p.generation where t.name = %s"""


_PAUSE_SECONDS: Final = 0.5
_TABLES: Final = "select name, dataset, hook from feature_pipeline.tables order by name"
_PAST_TABLES: Final = "select table_name, as_of from feature_pipeline.past_tables"
_EARLIER_NAME: Final = re.compile(r"_as_of_(\d{8}T\d{6})$", re.ASCII)
"""The name that earlier code, which kept no list of them, gave tables of the past: to the
second.
"""


@dataclass(frozen=True, slots=True)
class KnownTable:
    """A table of the bookkeeping: the features it shows, and as of when if of the past."""

    dataset: str
    hook: str
    name: str
    as_of: datetime | None = None

    @property
    def asset(self) -> str:
        """`<dataset>/features/<hook>`: the feature asset that it shows."""
        return f"{self.dataset}/features/{self.hook}"

    @property
    def spec(self) -> TableSpec:
        """The table without its columns, which suffices for the bookkeeping."""
        return TableSpec(self.dataset, self.hook, self.name, ())


@dataclass(frozen=True, slots=True)
class Retirement:
    """What dropping a table would remove, and what prevents it.

    `rows` and `batches` are those of the generation that is read, `size_bytes` is of all
    generations. `blocked` are objects that depend on the view or on a generation. `left` is what
    stays under the view's name.
    """

    table: KnownTable
    generations: int
    batches: int
    rows: int
    size_bytes: int
    blocked: tuple[str, ...] = ()
    left: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        as_of = self.table.as_of
        return {
            "table": self.table.name,
            "dataset": self.table.dataset,
            "hook": self.table.hook,
            "as_of": None if as_of is None else json_instant(as_of),
            "generations": self.generations,
            "batches": self.batches,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "blocked": list(self.blocked),
            "left": self.left,
        }


def known_tables(database: Database) -> list[KnownTable]:
    """Return every table of the bookkeeping, by name; none if there is no bookkeeping.

    Raises:
        ProjectionError: PostgreSQL refused, or could not be reached.
    """
    with database.connect("which tables there are") as connection:
        if not has_bookkeeping(connection):
            return []
        past: dict[str, datetime] = {}
        if has_table(connection, "past_tables"):
            past = dict(connection.execute(_PAST_TABLES).fetchall())
        rows = connection.execute(_TABLES).fetchall()
    return [
        KnownTable(dataset, hook, name, past.get(name) or _earlier_time(name))
        for name, dataset, hook in rows
    ]


def _earlier_time(name: str) -> datetime | None:
    match = _EARLIER_NAME.search(name)
    try:
        return None if match is None else datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError:
        return None


def find_tables(known: Iterable[KnownTable], names: Iterable[str]) -> list[KnownTable]:
    """Return the tables of these names, in their order.

    Raises:
        NotFoundError: No table has one of the names; names the existing tables.
    """
    by_name = {table.name: table for table in known}
    if unknown := [name for name in names if name not in by_name]:
        there = ", ".join(sorted(by_name)) or "none"
        raise NotFoundError(f"no table {unknown[0]!r}; there are {there}")
    return [by_name[name] for name in names]


def plan_retirement(database: Database, table: KnownTable) -> Retirement:
    """Determine what dropping the table would remove. Changes nothing.

    Raises:
        ProjectionError: PostgreSQL refused, or could not be reached.
    """
    with database.connect(f"table {table.name!r}") as connection:
        generations = list_generations(connection, table.spec, is_whole=False)
        batches, rows = connection.execute(_CONTENT, [table.name]).fetchall()[0]
        size = sum(_size(connection, generation) for generation in generations)
        view = find_view(connection, table.name)
        return Retirement(
            table,
            len(generations),
            batches,
            rows,
            size,
            _users(connection, table, generations),
            view.description if view.state in {ViewState.FOREIGN, ViewState.UNKNOWN} else None,
        )


def retire_table(database: Database, table: KnownTable) -> None:
    """Drop the view, its generations and their bookkeeping, or nothing.

    An object that has the view's name and is not the pipeline's stays. Waits for readers as a
    switch does.

    Raises:
        ConflictError: Something depends on it, which is named; or it was in use at every attempt.
        ProjectionError: PostgreSQL refused something else, or could not be reached.
    """
    with database.connect(f"table {table.name!r}") as connection:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_SECONDS)
            connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
            try:
                drop_table(connection, table.spec)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                continue
            return
    raise ConflictError(
        f"table {table.name!r} was not dropped: at each of {ATTEMPTS} attempts it was in use; end"
        " long transactions, or run again"
    )


def _users(
    connection: Connection, table: KnownTable, generations: Iterable[Generation]
) -> tuple[str, ...]:
    """Return what depends on the view or on a generation, except our own view."""
    relations = [g.identifier for g in generations if g.is_there]
    own_view = find_view(connection, table.name)
    own: set[str] = set()
    if own_view.state in {ViewState.UNCHANGED, ViewState.CHANGED}:
        view = sql.Identifier(READ_SCHEMA, table.name)
        relations.append(view)
        own = {f"view {fetch_value(connection, _IDENTITY, [READ_SCHEMA, table.name])}"}
    return tuple(u for u in dependents.users_of(connection, *relations) if u not in own)


_IDENTITY: Final = """
select o.identity from pg_class c join pg_namespace n on n.oid = c.relnamespace
cross join lateral pg_identify_object('pg_class'::regclass, c.oid, 0) o
where n.nspname = %s and c.relname = %s"""


def _size(connection: Connection, generation: Generation) -> int:
    if not generation.is_there:
        return 0
    name = generation.identifier.as_string(connection)
    return int(fetch_value(connection, "select pg_total_relation_size(%s)", [name]))
