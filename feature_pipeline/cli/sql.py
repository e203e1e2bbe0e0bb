"""`feature-pipeline sql`: one statement, its rows as a table. No psql is needed."""

from dataclasses import dataclass
from typing import Any, Final

import click
import psycopg
from psycopg import sql as compose

from feature_pipeline import settings
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project
from feature_pipeline.errors import InvalidInputError, ProjectionError

MAX_ROWS = 1_000
_CURSOR: Final = "rows"


@dataclass(frozen=True, slots=True)
class _Result:
    """The first rows of a result, and how many more there are."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: int


@click.command()
@click.argument("statement")
@click.option(
    "--max-rows", default=MAX_ROWS, show_default=True, type=click.IntRange(0), help="Rows to print."
)
@json_option
def sql(statement: str, max_rows: int, as_json: bool) -> None:
    """Run STATEMENT, read only, and print its rows.

    Tables are in the schema `features`, which is searched first: select * from pockets limit 5
    """
    Project.find().load_environment()
    output = Output(as_json)
    try:
        with psycopg.connect(settings.database_url(), connect_timeout=5) as connection:
            connection.read_only = True
            connection.execute("set search_path = features, public")
            connection.commit()
            result = _run(connection, statement, max_rows)
    except psycopg.OperationalError as error:
        raise ProjectionError(
            f"the tables' database cannot be reached: {str(error).strip()};"
            " is `feature-pipeline dev` running?"
        ) from error
    except psycopg.Error as error:
        raise InvalidInputError(f"{type(error).__name__}: {str(error).strip()}") from error
    columns, rows, more = result.columns, result.rows, result.more
    output.table("", columns, rows)
    output.say(f"{len(rows)} rows" + (f", {more} more not shown" if more else ""))
    output.result({"columns": columns, "rows": [list(row) for row in rows], "more": more})


def _run(connection: psycopg.Connection, statement: str, max_rows: int) -> _Result:
    """The result of the statement, of which no more than `max_rows` rows leave the server."""
    try:
        with connection.cursor(name=_CURSOR) as cursor:
            cursor.execute(statement.encode())
            # fetchmany(0) fetches a default number
            rows = cursor.fetchmany(max_rows) if max_rows else []
            more = connection.execute(
                compose.SQL("move forward all in {}").format(compose.Identifier(_CURSOR))
            ).rowcount
            return _Result(_columns(cursor), rows, more)
    except psycopg.ProgrammingError:
        # Cursors are for queries; SHOW and EXPLAIN, say, are none, and have few rows.
        connection.rollback()
    plain = connection.execute(statement.encode())
    if plain.description is None:
        raise InvalidInputError("the statement returns no rows")
    rows = plain.fetchmany(max_rows)
    return _Result(_columns(plain), rows, plain.rowcount - len(rows))


def _columns(cursor: psycopg.Cursor | psycopg.ServerCursor) -> list[str]:
    return [column.name for column in cursor.description or ()]
