"""`feature-pipeline sql`: run one statement without psql, and print its rows as a table."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from math import isfinite
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql as compose
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader

from feature_pipeline import settings
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project
from feature_pipeline.errors import InvalidInputError, ProjectionError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.projections.catalog.database import (
    Connection,
    ConnectionFailedError,
    Database,
)

_CURSOR: Final = "rows"
_PURPOSE: Final = "sql"
_BOOLEAN: Final = 16
"""Object id of the type `boolean`."""
_NUMBERS: Final = frozenset({"int2", "int4", "int8", "oid", "float4", "float8", "numeric"})

_Cursor: TypeAlias = "psycopg.Cursor[tuple[Any, ...]] | psycopg.ServerCursor[tuple[Any, ...]]"


@dataclass(frozen=True, slots=True)
class _Result:
    """The first rows of a result, and the number of further rows."""

    columns: list[str]
    numbers: list[int]
    """Positions of the numeric columns."""
    rows: list[tuple[Any, ...]]
    """Values for JSON."""
    texts: list[list[str | None]]
    """The values as PostgreSQL writes them."""
    more: int


def sql(statement: str, max_rows: int, as_json: bool) -> None:
    """Carry out `feature-pipeline sql`."""
    Project.find().load_environment()
    output = Output(as_json)
    with _session() as connection:
        result = _run(connection, statement, max_rows)
    output.table("", result.columns, result.texts, right=result.numbers)
    more = f", {result.more} more not shown" if result.more else ""
    output.say(f"{counted(len(result.rows), 'row')}{more}")
    output.result(
        {
            "columns": result.columns,
            "rows": [list(row) for row in result.rows],
            "more": result.more,
        }
    )


@contextmanager
def _session() -> Iterator[Connection]:
    """Open a read-only transaction in which tables need no schema.

    Raises:
        ProjectionError: The database cannot be reached, or the connection was lost.
        InvalidInputError: PostgreSQL refused the statement.
    """
    database = Database(settings.database_url())
    try:
        with database.open_session(_PURPOSE) as connection:
            connection.execute("set search_path = features, public")
            connection.autocommit = False
            connection.read_only = True
            _load_as_written(connection)
            try:
                yield connection
            except psycopg.Error as error:
                if connection.broken:
                    raise ProjectionError(
                        f"the connection to {database.address} was lost: {str(error).strip()}"
                    ) from error
                raise InvalidInputError(
                    f"PostgreSQL refused the query: {type(error).__name__}: {str(error).strip()}"
                ) from error
    except ConnectionFailedError as error:
        raise ProjectionError(f"{error}; is `feature-pipeline dev` running?") from error


def _load_as_written(connection: Connection) -> None:
    """Load values as the text that PostgreSQL writes where Python's types cannot represent all."""
    for name in ("date", "time", "timetz", "timestamp", "interval", "bytea"):
        connection.adapters.register_loader(name, TextLoader)
    connection.adapters.register_loader("timestamptz", _InstantLoader)
    set_json_loads(partial(json.loads, parse_float=_json_float), connection)


def _json_float(text: str) -> float | str:
    """Return the number, or its text if no float64 equals it."""
    value = float(text)
    return value if isfinite(value) and Decimal(repr(value)) == Decimal(text) else text


class _InstantLoader(TextLoader):
    """Load an instant in the JSON form that is used elsewhere: `2026-01-31T12:00:00Z`."""

    def load(self, data: Any) -> str | bytes:
        """Return the text in UTC, which is the session's time zone."""
        text = bytes(data).decode()
        if not text.endswith("+00"):
            return text  # infinity, or a year before the first
        return text.removesuffix("+00").replace(" ", "T") + "Z"


def _run(connection: Connection, statement: str, max_rows: int) -> _Result:
    """Run the statement; at most `max_rows` rows leave the server."""
    try:
        with connection.cursor(name=_CURSOR) as cursor:
            cursor.execute(statement.encode())
            # fetchmany(0) fetches a default number
            rows = cursor.fetchmany(max_rows) if max_rows else []
            result = _result(cursor, rows)
            more = connection.execute(
                compose.SQL("move forward all in {}").format(compose.Identifier(_CURSOR))
            ).rowcount
            return replace(result, more=more)
    except psycopg.ProgrammingError:
        # Cursors are for queries; SHOW and EXPLAIN, say, are none, and have few rows.
        connection.rollback()
    plain = connection.execute(statement.encode())
    if plain.description is None:
        raise InvalidInputError("the statement returns no rows")
    rows = plain.fetchmany(max_rows)
    return replace(_result(plain, rows), more=plain.rowcount - len(rows))


def _result(cursor: _Cursor, rows: list[tuple[Any, ...]]) -> _Result:
    description = cursor.description or []
    return _Result(
        columns=[column.name for column in description],
        numbers=[n for n, column in enumerate(description) if column.type_display in _NUMBERS],
        rows=rows,
        texts=[
            [_text(cursor, row, n) for n in range(len(description))] for row in range(len(rows))
        ],
        more=0,
    )


def _text(cursor: _Cursor, row: int, column: int) -> str | None:
    result = cursor.pgresult
    value = None if result is None else result.get_value(row, column)
    if value is None:
        return None
    text = value.decode()
    if result is not None and result.ftype(column) == _BOOLEAN:
        return {"t": "true", "f": "false"}[text]
    return text
