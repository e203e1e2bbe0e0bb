"""Connections to PostgreSQL, and the translation of its errors."""

import select
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from feature_pipeline.errors import InvalidInputError, ProjectionError
from feature_pipeline.projections.catalog.libpq import PATIENCE, nothing_ambient

# Which of these tables are in the schema?
_EXISTING_TABLES: Final = """
select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relkind in ('r', 'p') and c.relname = any(%s)"""

# Applies these settings to the session: which process of the server has it?
_SET_SESSION: Final = """
select pg_catalog.pg_backend_pid(),
array_agg(pg_catalog.set_config(name, value, false))
from unnest(%s::text[], %s::text[]) as wanted (name, value)"""


READ_SCHEMA: Final = "features"
"""The schema of the views that users read."""
BOOKKEEPING_SCHEMA: Final = "feature_pipeline"
"""The schema of generations and bookkeeping."""

Connection = psycopg.Connection[tuple[Any, ...]]
Statement = LiteralString | sql.SQL | sql.Composed

_POOLER_SECONDS: Final = 5.0
_FIRST_VERSION: Final = 140_000
_ENCODING: Final = "UTF8"
_SETTINGS: Final = {
    # What values look like as text, and how literals are read.
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    # 1: the shortest text that gives the same float64; 0 and below lose digits.
    "extra_float_digits": "1",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    # pg_catalog comes first by itself. No "$user": a role named as the bookkeeping schema has it.
    "search_path": "public, pg_temp",
    # An error in place of rows that a policy hides.
    "row_security": "off",
    # Loads wait for each other by advisory locks; under other levels they fail with 40001 instead.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # A load or an index takes as long as it takes; waits for locks are bounded where they are made.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "client_min_messages": "warning",
    # A session whose client's machine is gone keeps its locks until the server notices.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}
"""Settings on which results depend. Every session sets them: environment, database and role may
differ.
"""
_LATER_SETTINGS: Final = {
    140000: {"idle_session_timeout": "0"},
    170000: {"transaction_timeout": "0"},
}
"""Further settings, by the server version that introduced them."""
_FIRST_BACKOFF_SECONDS: Final = 0.005
_LONGEST_BACKOFF_SECONDS: Final = 0.5


UNHOLDABLE: Final = (
    psycopg.DataError,
    # A value too long for an index, a row beyond a page, an object beyond a quarter of a gigabyte.
    psycopg.errors.ProgramLimitExceeded,
)
"""Errors about one row alone: it cannot be stored, whatever the others are."""


_TRANSIENT_CLASSES: Final = frozenset({"08", "40", "53", "57", "58"})
"""Of SQLSTATE: connection, rollback, resources, intervention, system."""
_LOCK_NOT_AVAILABLE: Final = "55P03"


class ConnectionFailedError(ProjectionError):
    """PostgreSQL could not be reached, or refused the role."""


@dataclass(frozen=True, slots=True)
class Database:
    """A PostgreSQL database for tables.

    `url` is `postgresql://user:password@host:port/database`, without a driver suffix. It does not
    appear in the representation, because it contains a password.
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
        """Open an autocommit connection; transactions are opened explicitly by `transaction()`.

        Args:
            purpose: What it is for: the start of error messages.

        Raises:
            ProjectionError: PostgreSQL could not be reached or refused something (the driver's
                error is the cause), or the database's encoding is not UTF8.
        """
        with translated(purpose), self.open_session(purpose) as connection:
            yield connection

    @contextmanager
    def open_session(self, purpose: str) -> Iterator[Connection]:
        """Open a connection as `connect` does, without translating errors of statements.

        The session has the same settings whatever libpq's variables, the database or the role set
        (`_SETTINGS`), so that the same statement returns the same bytes everywhere.

        Raises:
            ConnectionFailedError: PostgreSQL could not be reached, or refused the role.
            ProjectionError: The server's version, the database's encoding, or the mode of a pooler
                before it is not supported.
        """
        try:
            with nothing_ambient():
                connection = _connect(
                    self.url, application_name="feature_pipeline", client_encoding=_ENCODING
                )
        except psycopg.OperationalError as error:
            raise ConnectionFailedError(
                f"{purpose}: no connection to PostgreSQL at {self.address}: {_first_line(error)}"
            ) from error
        with connection:
            self._check_server(purpose, connection)
            pid = _set_session(connection)
            # A pooler answers with a process id of its own making.
            if pid != connection.info.backend_pid:
                self._check_pooler(purpose, connection)
            yield connection

    def _check_pooler(self, purpose: str, connection: Connection) -> None:
        """Refuse a pooler that gives a session another server process for each transaction.

        The session's settings and locks would belong to the client that gets the process next.
        """
        if self.url in _session_poolers:
            return
        if _lends_server(connection, self.url):
            raise ProjectionError(
                f"{purpose}: the connection pooler at {self.address} lends a server process for"
                " one transaction, but the pipeline's settings and locks last for a session: use a"
                " pooler in session mode (PgBouncer: pool_mode=session for this database), or"
                " PostgreSQL itself"
            )
        _session_poolers.add(self.url)

    def _check_server(self, purpose: str, connection: Connection) -> None:
        version = connection.info.server_version
        if version < _FIRST_VERSION:
            # as PostgreSQL numbers itself since 10
            raise ProjectionError(
                f"{purpose}: PostgreSQL at {self.address} has version {version // 10_000}:"
                f" {_FIRST_VERSION // 10_000} or newer is needed"
            )
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != _ENCODING:
            raise ProjectionError(
                f"{purpose}: database {self.address} has the encoding {encoding}, which cannot hold"
                " every text of the archive: create another one with"
                " `create database ... encoding 'UTF8' template template0` and rebuild into it"
            )


def _connect(url: str, **parameters: str) -> Connection:
    """Connect in autocommit mode, with these parameters, to a server that may fall silent."""
    conninfo = make_conninfo(url, **{**PATIENCE, **conninfo_to_dict(url), **parameters})
    return psycopg.connect(conninfo, autocommit=True)


def _set_session(connection: Connection) -> int:
    """Apply the settings on which results depend; return the id of the server's process."""
    wanted = dict(_SETTINGS)
    for version, settings in _LATER_SETTINGS.items():
        if connection.info.server_version >= version:
            wanted |= settings
    # After connecting, in one statement: the database's and the role's settings outrank `options`,
    # which poolers refuse.
    return int(fetch_value(connection, _SET_SESSION, [list(wanted), list(wanted.values())]))


_session_poolers: Final = set[str]()
"""URLs of poolers that this process has seen keep one server process per session."""


def _lends_server(connection: Connection, url: str) -> bool:
    """Return whether a second client gets the server process of an open session.

    In transaction mode an idle client has no process: its last one is the first that the next
    client gets.
    """
    ours = fetch_value(connection, "select pg_catalog.pg_backend_pid()")
    with nothing_ambient():
        second = _connect(url)
    with closing(second):
        second.pgconn.send_query(b"select pg_catalog.pg_backend_pid()")
        deadline = time.monotonic() + _POOLER_SECONDS
        # Asked for a result that is not there yet, it would wait for it and stop every thread.
        while second.pgconn.is_busy():
            seconds = max(0.0, deadline - time.monotonic())
            if not select.select([second.fileno()], [], [], seconds)[0]:
                # A pool with no process left for it: each belongs to a session.
                return False
            second.pgconn.consume_input()
        result = second.pgconn.get_result()
        value = None if result is None else result.get_value(0, 0)
        return value is not None and int(value) == ours


@contextmanager
def translated(purpose: str) -> Iterator[None]:
    """Translate driver errors in the block into a `ProjectionError` that starts with `purpose`."""
    try:
        yield
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise ProjectionError(
            f"{purpose}: this PostgreSQL is read-only, as a standby is"
            f" ({_describe(error)}): name the primary server in the database URL"
        ) from error
    except psycopg.Error as error:
        raise ProjectionError(f"{purpose}: {_describe(error)}") from error


def is_transient(error: psycopg.Error) -> bool:
    """Return whether an error is about the session or the server, and not about the statement.

    A canceled statement, a lock timeout, a full disk and a lost connection are: the same statement
    may succeed when it is repeated.
    """
    code = error.sqlstate
    return code is None or code[:2] in _TRANSIENT_CLASSES or code == _LOCK_NOT_AVAILABLE


def lock(connection: Connection, *names: object, is_shared: bool = False) -> None:
    """Hold the advisory lock of these names until the transaction ends.

    Two names may hash to the same lock; then one waits unnecessarily, which is harmless.
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
    """Hold the advisory lock of these names during the block, over any number of transactions.

    The lock is polled rather than waited for: a session that waits in PostgreSQL holds a snapshot,
    and the holder of the lock may be waiting for that snapshot (`create index concurrently` does).
    """
    name = _lock_name(names)
    backoff = _FIRST_BACKOFF_SECONDS
    while not fetch_value(
        connection, "select pg_try_advisory_lock(hashtextextended(%s, 7))", [name]
    ):
        time.sleep(backoff)
        backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)
    try:
        yield
    finally:
        # A broken connection has released it already.
        if not connection.broken:
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 7))", [name])


def fetch_one(
    connection: Connection, query: Statement, parameters: Any = None
) -> tuple[Any, ...] | None:
    """Return the first row of a query, or None."""
    return connection.execute(query, parameters).fetchone()


def fetch_value(connection: Connection, query: Statement, parameters: Any = None) -> Any:
    """Return the first column of the first row of a query that always has one."""
    row = connection.execute(query, parameters).fetchone()
    if row is None:
        raise ProjectionError("PostgreSQL answered a query without the row it always has")
    return row[0]


def existing_tables(connection: Connection, names: Collection[str]) -> set[str]:
    """Return which of these tables exist in the pipeline's own schema.

    Read from the catalog: to_regclass() would answer from a cache that is not renewed by waiting
    for an advisory lock.
    """
    rows = connection.execute(_EXISTING_TABLES, [BOOKKEEPING_SCHEMA, list(names)])
    return {name for (name,) in rows}


def _first_line(error: psycopg.Error) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _describe(error: psycopg.Error) -> str:
    diagnostics = error.diag
    if diagnostics.message_primary is None:
        return _first_line(error)
    parts = [diagnostics.message_primary, diagnostics.message_detail, diagnostics.message_hint]
    return f"{'; '.join(part for part in parts if part)} ({diagnostics.sqlstate})"
