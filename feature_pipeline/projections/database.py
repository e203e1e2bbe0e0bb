"""Connections to PostgreSQL, and its errors translated once."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from feature_pipeline.errors import InvalidInputError, ProjectionError

READ_SCHEMA: Final = "features"
"""Where people read: views."""
BOOKKEEPING_SCHEMA: Final = "feature_pipeline"
"""Where generations and bookkeeping are."""

Connection = psycopg.Connection[tuple[Any, ...]]
Statement = LiteralString | sql.SQL | sql.Composed

_CONNECT_TIMEOUT_SECONDS: Final = 10
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Database:
    """A PostgreSQL database that tables are built in.

    `url` is `postgresql://user:password@host:port/database`, without a driver suffix. It does not
    appear in the representation, because it holds a password.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            conninfo_to_dict(self.url)
        except psycopg.Error as error:
            # Neither the URL nor the driver's message, which may quote the password.
            raise InvalidInputError(
                "the database URL is not of the form postgresql://user:password@host:port/database"
            ) from error

    @property
    def address(self) -> str:
        """`host:port/database`, for messages."""
        parts = conninfo_to_dict(self.url)
        host, port = parts.get("host", "localhost"), parts.get("port", "5432")
        return f"{host}:{port}/{parts.get('dbname', parts.get('user', ''))}"

    @contextmanager
    def connect(self, purpose: str) -> Iterator[Connection]:
        """An autocommit connection; transactions are opened explicitly by `transaction()`.

        Args:
            purpose: What it is for: the start of error messages.

        Raises:
            ProjectionError: PostgreSQL could not be reached or refused something; the driver's
                error is the cause.
        """
        with translated(purpose):
            try:
                connection = psycopg.connect(
                    self.url,
                    autocommit=True,
                    connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                    application_name="feature_pipeline",
                    options="-c timezone=UTC -c client_min_messages=warning -c datestyle=ISO",
                )
            except psycopg.OperationalError as error:
                raise ProjectionError(
                    f"{purpose}: no connection to PostgreSQL at {self.address}:"
                    f" {_first_line(error)}"
                ) from error
            with connection:
                yield connection


@contextmanager
def translated(purpose: str) -> Iterator[None]:
    """Inside, an error of the driver becomes a `ProjectionError` that starts with `purpose`."""
    try:
        yield
    except psycopg.Error as error:
        raise ProjectionError(f"{purpose}: {_describe(error)}") from error


def lock(connection: Connection, *names: object, is_shared: bool = False) -> None:
    """Hold the advisory lock of these names until the transaction ends.

    Two names may share a lock by chance of hashing: then one waits for no reason, no more.
    """
    query: LiteralString = (
        "select pg_advisory_xact_lock_shared(hashtextextended(%s, 7))"
        if is_shared
        else "select pg_advisory_xact_lock(hashtextextended(%s, 7))"
    )
    connection.execute(query, [_lock_name(names)])


def lock_each(connection: Connection, names: Iterable[tuple[object, ...]]) -> None:
    """Hold the advisory locks of all these names, taken in this order (`lock`)."""
    connection.execute(
        "select pg_advisory_xact_lock(hashtextextended(name, 7)) from unnest(%s::text[]) as name",
        [[_lock_name(name) for name in names]],
    )


def _lock_name(names: Iterable[object]) -> str:
    return "feature_pipeline/" + "/".join(map(str, names))


@contextmanager
def session_lock(connection: Connection, *names: object) -> Iterator[None]:
    """Hold the advisory lock of these names while the block runs, over any number of transactions.

    It is asked for again and again rather than waited for: a session that waits in PostgreSQL
    holds a snapshot, and the holder may be waiting for just that to go (`create index
    concurrently` does).
    """
    name = _lock_name(names)
    pause = _FIRST_PAUSE_SECONDS
    while not fetch_value(
        connection, "select pg_try_advisory_lock(hashtextextended(%s, 7))", [name]
    ):
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
    try:
        yield
    finally:
        # A broken connection has released it already.
        if not connection.broken:
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 7))", [name])


def fetch_one(
    connection: Connection, query: Statement, parameters: Any = None
) -> tuple[Any, ...] | None:
    """The first row of a query, or None."""
    return connection.execute(query, parameters).fetchone()


def fetch_value(connection: Connection, query: Statement, parameters: Any = None) -> Any:
    """The first column of the first row of a query that always has one."""
    row = connection.execute(query, parameters).fetchone()
    if row is None:
        raise ProjectionError("PostgreSQL answered a query without the row it always has")
    return row[0]


def _first_line(error: psycopg.Error) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _describe(error: psycopg.Error) -> str:
    diagnostics = error.diag
    if diagnostics.message_primary is None:
        return _first_line(error)
    parts = [diagnostics.message_primary, diagnostics.message_detail, diagnostics.message_hint]
    return f"{'; '.join(part for part in parts if part)} ({diagnostics.sqlstate})"
