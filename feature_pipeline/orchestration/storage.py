"""Dagster's own storage, in the PostgreSQL that the environment names.

With Dagster's `env:` in dagster.yaml, the error only states that a variable is not set; ours says
how to set it.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import create_pg_engine
from sqlalchemy import Connection, Dialect, NullPool, event
from sqlalchemy.exc import OperationalError

from feature_pipeline import settings
from feature_pipeline.orchestration.dagster_internals import ConfigurableClassData, UserConfigSchema
from feature_pipeline.projections.catalog.libpq import PATIENCE, nothing_ambient

# Firewalls and proxies forget connections that were idle for longer; the usual limits are minutes.
RECYCLE_SECONDS = 300

logger = logging.getLogger(__name__)

_TRY_AGAIN_SECONDS: Final = 1
_LOG_SECONDS: Final = 60
_REFUSAL: Final = "FATAL:"
"""In the text of an error that PostgreSQL itself sent, which has no other mark."""
_FOR_NOW: Final = re.compile("starting up|shutting down|recovery mode|connection slots|too many")


class EnvironmentStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` at `DAGSTER_DATABASE_URL`, with one connection kept open.

    Dagster's own storage connects for every event it writes and every query, which costs more than
    the writing and the query. Here a process keeps one connection for all three parts of the
    storage, and opens more while several threads need one. A connection that the server has ended
    is detected before it is used, and replaced.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        # It connects, to create its tables, by engines of its own. Once in a process: each tick of
        # a sensor makes a storage.
        is_first = postgres_url not in _prepared
        if is_first and _is_code_server(sys.argv):
            _wait_until_reached(postgres_url)
        with nothing_ambient():
            super().__init__(postgres_url, should_autocreate_tables and is_first, inst_data)
        if should_autocreate_tables:
            _prepared.add(postgres_url)
        engine = create_pg_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=-1,
            pool_pre_ping=True,
            pool_recycle=RECYCLE_SECONDS,
        )
        event.listen(engine, "do_connect", _connect)
        self._run_storage = _Runs(postgres_url, should_autocreate_tables=False)
        self._event_log_storage = _EventLog(postgres_url, should_autocreate_tables=False)
        self._schedule_storage = _Schedules(postgres_url, should_autocreate_tables=False)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return an empty schema: the address comes from the environment."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Return the storage.

        Raises:
            InvalidInputError: The variable is not set, or names another driver.
        """
        return cls(postgres_url=settings.dagster_database_url(), inst_data=inst_data)


def _is_code_server(argv: Sequence[str]) -> bool:
    """Return whether this process serves definitions: `dagster api grpc`, `dagster code-server`."""
    return "code-server" in argv or {"api", "grpc"} <= set(argv)


def _wait_until_reached(postgres_url: str) -> None:
    """Wait while PostgreSQL cannot be reached.

    A code server that finds no database when it starts would serve that error for as long as it
    lives, and no sensor would tick until a user reloaded it. While it waits, it is not ready.

    Raises:
        OperationalError: PostgreSQL refuses the role or has no such database: waiting is no remedy.
    """
    engine = create_pg_engine(postgres_url, poolclass=NullPool)
    event.listen(engine, "do_connect", _connect)
    logged_at = -math.inf
    while True:
        try:
            engine.connect().close()
        except OperationalError as error:
            text = str(error.orig).strip()
            if _REFUSAL in text and not _FOR_NOW.search(text):
                raise
            if time.monotonic() >= logged_at + _LOG_SECONDS:
                logger.warning("waiting for Dagster's database: %s", text)
                logged_at = time.monotonic()
            time.sleep(_TRY_AGAIN_SECONDS)
        else:
            return


def _connect(
    dialect: Dialect, record: object, arguments: list[Any], parameters: dict[str, Any]
) -> object:
    """Connect as SQLAlchemy would, with no variable of libpq, to a server that may fall silent."""
    with nothing_ambient():
        return dialect.connect(*arguments, **{**PATIENCE, **parameters})


_prepared: Final = set[str]()
"""Addresses at which this process has created Dagster's tables, or found them."""

_checked: Final = set[tuple[str, ...]]()
"""Tables and columns that this process has seen, with the address of their database.

Dagster queries them before most queries. Existing ones stay. A missing one is queried again,
because a migration may add it.
"""


def _remembered(key: tuple[str, ...], is_there: Callable[[], bool]) -> bool:
    if key not in _checked and is_there():
        _checked.add(key)
    return key in _checked


class _Runs(PostgresRunStorage):
    """Remembers the columns it has seen."""

    def has_run_stats_index_cols(self) -> bool:
        key = (self.postgres_url, "run statistics")
        return _remembered(key, super().has_run_stats_index_cols)

    def has_bulk_actions_selector_cols(self) -> bool:
        key = (self.postgres_url, "selectors of backfills")
        return _remembered(key, super().has_bulk_actions_selector_cols)


class _Schedules(PostgresScheduleStorage):
    """Remembers the tables and built indexes it has seen."""

    def has_instigators_table(self) -> bool:
        key = (self.postgres_url, "table", "instigators")
        return _remembered(key, super().has_instigators_table)

    def _has_instigators_table(self, conn: Connection) -> bool:
        key = (self.postgres_url, "table", "instigators")
        return _remembered(key, partial(super()._has_instigators_table, conn))

    def has_built_index(self, migration_name: str) -> bool:
        key = (self.postgres_url, "index of schedules", migration_name)
        return _remembered(key, partial(super().has_built_index, migration_name))


class _EventLog(PostgresEventLogStorage):
    """Remembers the tables and columns it has seen, and closes the engine that all parts share."""

    def has_table(self, table_name: str) -> bool:
        key = (self.postgres_url, "table", table_name)
        return _remembered(key, partial(super().has_table, table_name))

    def has_asset_key_col(self, column_name: str) -> bool:
        key = (self.postgres_url, "column", column_name)
        return _remembered(key, partial(super().has_asset_key_col, column_name))

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()
