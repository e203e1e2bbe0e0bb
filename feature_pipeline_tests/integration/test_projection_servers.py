"""Servers before and in place of an ordinary PostgreSQL: poolers, standbys, old versions."""

from unittest import mock

import psycopg
import pytest

from feature_pipeline.errors import ProjectionError
from feature_pipeline.orchestration.storage import EnvironmentStorage
from feature_pipeline.projections.catalog import database as module
from feature_pipeline.projections.catalog.database import (
    Database,
    fetch_value,
    session_lock,
    translated,
)
from feature_pipeline_tests.fixtures.pooler import Pooler

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_session_poolers", set())


def test_a_pooler_in_session_mode_is_as_good_as_the_server(database_url: str, pooler: Pooler):
    database = Database(pooler(database_url, "session"))
    with database.connect("testing") as one, session_lock(one, "a"):
        assert fetch_value(one, "show search_path") == "public, pg_temp"
        for number in range(10):  # psycopg prepares what it is given often
            assert fetch_value(one, "select %s::int", [number]) == number
        with Database(database_url).connect("testing") as other:
            statement = "select count(*) from pg_locks where locktype = 'advisory' and granted"
            assert fetch_value(other, statement) == 1
    # what the next client of the server process gets is its own
    with database.connect("testing") as again:
        assert fetch_value(again, "show application_name") == "feature_pipeline"
        assert fetch_value(again, "select count(*) from pg_prepared_statements") == 0


def test_a_pooler_in_session_mode_may_have_no_process_left(
    database_url: str, pooler: Pooler, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_POOLER_SECONDS", 0.2)
    url = pooler(database_url, "session", pool_size=1)
    for _ in range(2):
        with Database(url).connect("testing") as connection:
            assert fetch_value(connection, "select 1") == 1


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_in_another_mode_is_refused(database_url: str, pooler: Pooler, mode: str):
    url = pooler(database_url, mode)
    for _ in range(2):
        with (
            pytest.raises(ProjectionError, match=r"^testing: the connection pooler at .*session"),
            Database(url).connect("testing"),
        ):
            pass


def test_dagsters_storage_works_behind_a_pooler(
    database_url: str, pooler: Pooler, monkeypatch: pytest.MonkeyPatch
):
    url = pooler(database_url, "session").replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    storage = EnvironmentStorage.from_config_value(None, {})
    storage.event_log_storage.optimize_for_webserver(15_000, pool_recycle=60, max_overflow=2)
    storage.event_log_storage.add_dynamic_partitions("letters", ["a"])
    assert storage.event_log_storage.get_dynamic_partitions("letters") == ["a"]
    storage.event_log_storage.dispose()


def test_a_server_that_takes_no_writes_is_named(database_url: str):
    """As a standby answers: every transaction is read-only, and no setting changes it."""
    with (
        Database(database_url).connect("testing") as connection,
        connection.transaction(),
    ):
        connection.execute("set transaction read only")
        with (
            pytest.raises(ProjectionError, match=r"^loading: .*is read-only.*primary server"),
            translated("loading"),
        ):
            connection.execute("create schema features")


def test_a_version_that_is_not_supported_is_refused(database_url: str):
    old = mock.PropertyMock(return_value=130_018)
    with (
        mock.patch.object(psycopg.ConnectionInfo, "server_version", old),
        pytest.raises(ProjectionError, match=r"version 13: 14 or newer is needed"),
        Database(database_url).connect("loading"),
    ):
        pass
