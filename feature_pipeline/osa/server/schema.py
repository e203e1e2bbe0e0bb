"""The tables and columns of the server that are read, and the check that they are there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.projections.catalog.database import Connection

KNOWN_SCHEMA: Final = "44a8e3799b97"
"""The server's schema version (`alembic_version`) with which this package was tested."""

Tables = Mapping[str, tuple[str, ...]]

DEFINITIONS: Final[Tables] = {
    "hooks": ("name", "feature_spec", "live_release_id"),
    "hook_releases": (
        *("id", "hook_name", "version", "image", "digest", "config", "limits"),
        *("source_ref", "built_by", "built_at"),
    ),
    "conventions": ("id", "title", "schema_id", "schema_version", "hooks"),
}
"""Per table of the schema `public`, the columns that are read for definitions."""

COMPLETIONS: Final[Tables] = {
    **DEFINITIONS,
    "hook_runs": ("id", "release_id", "status", "started_at", "finished_at", "oom_retries"),
    "ingest_runs": (
        *("id", "convention_id", "status", "batches_ingested", "started_at", "completed_at"),
    ),
    "depositions": ("srn", "convention_id", "stage", "metadata", "files", "updated_at"),
    "events": ("id", "payload"),
    "deliveries": ("event_id", "consumer_group", "status", "claimed_at"),
}
"""The same for completions."""

COMPARISON: Final[Tables] = {
    **DEFINITIONS,
    "records": ("srn", "convention_id", "source"),
    "feature_tables": ("hook_name", "pg_table"),
}
"""The same for comparing, apart from the hooks' tables in the schema `features`."""

HISTORY: Final[Tables] = {
    **DEFINITIONS,
    "hook_runs": COMPLETIONS["hook_runs"],
    "ingest_runs": ("id", "batches_ingested"),
    "records": (*COMPARISON["records"], "metadata", "published_at"),
    "feature_tables": COMPARISON["feature_tables"],
}
"""The same for importing rows, apart from the hooks' tables."""

RESTORE: Final[Tables] = {
    **DEFINITIONS,
    "records": ("srn", "convention_id", "source"),
    "hook_runs": (
        *("id", "release_id", "status", "started_at", "finished_at", "duration_s"),
        "oom_retries",
    ),
    "feature_tables": ("hook_name", "pg_table", "feature_schema", "schema_version", "created_at"),
}
"""The same for restoring the hooks' tables."""

COLUMN_TYPES: Final[Mapping[str, str]] = {
    "string": "text",
    "number": "double precision",
    "integer": "bigint",
    "boolean": "boolean",
    "json": "jsonb",
    "date": "date",
    "date-time": "timestamp with time zone",
    "uuid": "uuid",
}
"""By kind of column, the type that the server gives it in a hook's table."""

FIXED_COLUMNS: Final[Mapping[str, str]] = {
    "id": "bigint",
    "record_srn": "text",
    "run_id": "uuid",
    "created_at": "timestamp with time zone",
}
"""The columns that every hook's table has, none of which may be null, with their types."""

_COLUMNS: Final = """
select a.attname, format_type(a.atttypid, null), a.attnotnull
from pg_attribute as a
join pg_class as c on c.oid = a.attrelid
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = 'features' and c.relname = %s and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""
"""Answers which columns a hook's table has, of which types, and which may not be null."""

_LOOK = """
select c.relname,
       has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'),
       array(select a.attname::text from pg_attribute as a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm')
  and c.relname = any(%s)
"""
"""Answers which of the tables exist, whether the role may read them, and their columns. Reads the
catalog alone: `information_schema` hides tables that the role may not read.
"""


@dataclass(frozen=True, slots=True)
class _Table:
    is_readable: bool
    columns: frozenset[str]


def check_schema(connection: Connection, address: str, tables: Tables) -> None:
    """Check that every table and column that is read exists, and that the role may read it.

    Args:
        connection: A session of the server's database.
        address: The database, for messages.
        tables: What is read.

    Raises:
        InvalidInputError: Names the tables that were looked at and every one that lacks something,
            with the grants that are needed.
    """
    existing = {
        name: _Table(is_readable, frozenset(columns))
        for name, is_readable, columns in connection.execute(_LOOK, ["public", list(tables)])
    }
    problems = [f"there is no table public.{name}" for name in tables if name not in existing]
    problems += [
        f"public.{name} has no column {first_few(map(repr, lacking))}"
        for name, columns in tables.items()
        if name in existing and (lacking := [c for c in columns if c not in existing[name].columns])
    ]
    looked_at = f"looked at {', '.join(f'public.{name}' for name in tables)}"
    if problems:
        raise InvalidInputError(
            f"database {address} is not that of an Open Science Archive server whose schema is"
            f" known ({version_sentence(connection)}): {'; '.join(problems)}. {looked_at}"
        )
    barred = [name for name in tables if not existing[name].is_readable]
    if barred:
        role = connection.info.user
        raise InvalidInputError(
            f"database {address}: role {role!r} has no access to"
            f" {', '.join(f'public.{name}' for name in barred)}: `grant usage on schema public to"
            f' "{role}"; grant select on {", ".join(f"public.{name}" for name in barred)} to'
            f' "{role}"`. {looked_at}'
        )


def feature_columns(connection: Connection, table: str, address: str) -> frozenset[str]:
    """Return the columns of a hook's table in the schema `features`.

    Raises:
        InvalidInputError: There is no such table, or the role may not read it.
    """
    for _, is_readable, columns in connection.execute(_LOOK, ["features", [table]]):
        if is_readable:
            return frozenset(columns)
        role = connection.info.user
        raise InvalidInputError(
            f'database {address}: role {role!r} has no access to features."{table}": `grant usage'
            f' on schema features to "{role}"; grant select on features."{table}" to "{role}"`'
        )
    raise InvalidInputError(
        f'database {address} has no table features."{table}", but public.feature_tables names it:'
        " the server reads no record without it. If it is lost, `feature-pipeline osa restore`"
        " makes it again"
    )


def table_columns(connection: Connection, table: str) -> dict[str, tuple[str, bool]]:
    """Return the type of each column of a hook's table, in order, and whether it is `not null`."""
    rows = connection.execute(_COLUMNS, [table])
    return {name: (kind, is_required) for name, kind, is_required in rows}


def version_sentence(connection: Connection) -> str:
    """Return which schema version the server's database has, as far as the role may see it."""
    readable = connection.execute(
        "select has_table_privilege(c.oid, 'select') from pg_class as c"
        " join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname = 'public' and c.relname = 'alembic_version'"
    ).fetchone()
    if readable is None:
        return "there is no public.alembic_version"
    if not readable[0]:
        return "public.alembic_version cannot be read"
    row = connection.execute("select version_num from public.alembic_version").fetchone()
    version = "none" if row is None else str(row[0])
    return f"its schema version is {version}; known is {KNOWN_SCHEMA}"
