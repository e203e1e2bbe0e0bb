"""A table as users read it: the columns that PostgreSQL shows, and the number of rows."""

from dataclasses import dataclass
from typing import Final

from feature_pipeline.projections.catalog.bookkeeping import has_bookkeeping
from feature_pipeline.projections.catalog.database import READ_SCHEMA, Database, fetch_value

_COLUMNS: Final = """
select a.attname, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = %s and c.relname = %s order by a.attnum"""

# As loads count them: without reading the table.
_ROWS: Final = """
select coalesce(sum(p.rows), 0)::bigint from feature_pipeline.progress p
join feature_pipeline.tables t on t.live = p.generation where t.name = %s"""


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A column of the view: its type as PostgreSQL names it, and its comment."""

    name: str
    type: str
    description: str | None


@dataclass(frozen=True, slots=True)
class ShownTable:
    """The view's columns in their order, and the number of rows of all batches."""

    columns: tuple[ShownColumn, ...]
    rows: int


def read_shown_table(database: Database, name: str) -> ShownTable | None:
    """Return the content of `features.<name>`; None if nothing of that name exists."""
    with database.connect(f"table {name!r}") as connection:
        columns = connection.execute(_COLUMNS, [READ_SCHEMA, name]).fetchall()
        if not columns or not has_bookkeeping(connection):
            return None
        rows = fetch_value(connection, _ROWS, [name])
    return ShownTable(tuple(ShownColumn(*column) for column in columns), int(rows))
