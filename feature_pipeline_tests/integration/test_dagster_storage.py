"""Dagster's storage on a real server: one connection a process, and what ends it is survived."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import pytest
from sqlalchemy.engine.reflection import Inspector

from feature_pipeline.orchestration.dagster_internals import database_id
from feature_pipeline.orchestration.events.latest_events import events_after, latest_events
from feature_pipeline.orchestration.storage import EnvironmentStorage
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures.dagster import dagster_instance
from feature_pipeline_tests.fixtures.postgres import PostgresAddress, silence_of

SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, database_url: str) -> EnvironmentStorage:
    url = database_url.replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    return EnvironmentStorage.from_config_value(None, {})


@pytest.fixture
def sessions(database_url: str) -> Callable[[], list[int]]:
    """The server's sessions on the database besides the asking one."""

    def ask() -> list[int]:
        with psycopg.connect(database_url) as connection:
            own = connection.info.backend_pid
            return [pid for (pid,) in connection.execute(SESSIONS, [own])]

    return ask


def use(storage: EnvironmentStorage) -> None:
    """Every part of the storage writes or reads."""
    storage.event_log_storage.add_dynamic_partitions("letters", ["a"])
    assert storage.event_log_storage.get_dynamic_partitions("letters") == ["a"]
    assert storage.event_log_storage.has_asset_key(dg.AssetKey("nothing")) is False
    assert storage.run_storage.get_runs() == []
    assert storage.schedule_storage.all_instigator_state() == []


def until(count: int, sessions: Callable[[], list[int]]) -> list[int]:
    """So many sessions' processes; those of closed connections take a moment to go."""
    end = time.monotonic() + 60
    while len(count_now := sessions()) != count:
        assert time.monotonic() < end, count_now
        time.sleep(0.02)
    return count_now


def test_one_connection_serves_all_three_parts(storage, sessions):
    use(storage)
    first = until(1, sessions)
    use(storage)
    assert until(1, sessions) == first
    storage.event_log_storage.dispose()
    until(0, sessions)


def test_a_connection_that_the_server_ended_is_replaced(
    storage, sessions, postgres_server: PostgresAddress
):
    use(storage)
    first = until(1, sessions)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", first)
    use(storage)
    assert until(1, sessions) != first
    storage.event_log_storage.dispose()


def test_a_database_that_falls_silent_is_waited_for_as_tables_are(storage, database_url):
    use(storage)
    with storage.event_log_storage.index_connection() as connection:
        ours = silence_of(connection.connection.fileno())
    with Database(database_url).connect("test") as tables:
        assert ours == silence_of(tables.fileno())
    storage.event_log_storage.dispose()


def test_a_table_that_a_migration_adds_is_seen(storage, database_url):
    log = storage.event_log_storage
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE dynamic_partitions RENAME TO elsewhere")
        connection.execute("ALTER TABLE asset_keys RENAME COLUMN cached_status_data TO elsewhere")
        assert not log.has_table("dynamic_partitions")
        assert not log.can_read_asset_status_cache()
        connection.execute("ALTER TABLE elsewhere RENAME TO dynamic_partitions")
        connection.execute("ALTER TABLE asset_keys RENAME COLUMN elsewhere TO cached_status_data")
    assert log.has_table("dynamic_partitions")
    assert log.can_read_asset_status_cache()
    storage.event_log_storage.dispose()


def use_more(storage: EnvironmentStorage) -> None:
    """What the daemon and sensors do at each tick besides."""
    use(storage)
    assert storage.schedule_storage.supports_batch_queries
    assert storage.run_storage.get_run_records() == []
    assert storage.run_storage.get_backfills() == []
    storage.event_log_storage.dispose()


def test_a_process_checks_for_tables_once(storage, monkeypatch):
    """Each tick of a sensor opens the storage anew."""
    use_more(storage)
    reflected = list[str]()

    def reflect(self: Inspector, *names: str, **options: object) -> list[Any]:
        reflected.extend(names or ["tables"])
        return []

    monkeypatch.setattr(Inspector, "get_table_names", reflect)
    monkeypatch.setattr(Inspector, "get_columns", reflect)
    again = EnvironmentStorage.from_config_value(None, {})
    use_more(again)
    assert reflected == []


def test_events_of_a_database_that_was_restored_are_read_again(
    postgres_server: PostgresAddress, dagster_template: str, tmp_path: Path
):
    """It has the id of the one before it, and gives the same numbers to other events."""
    key = dg.AssetKey(["letters", "features", "size"])
    backup = postgres_server.create_database(dagster_template)
    with dagster_instance(tmp_path / "first", backup) as instance:
        assert database_id(instance)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        of_it = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(of_it, [urlsplit(backup).path[1:]])
    for version, count in (("1", 6), ("2", 3)):
        url = postgres_server.create_database(backup)
        with dagster_instance(tmp_path / version, url) as instance:
            for number in range(count):
                tags = {"dagster/data_version": version}
                event = dg.AssetMaterialization(key, partition=f"b{number}", tags=tags)
                instance.report_runless_asset_event(event)
                for events in (
                    latest_events(instance, key, ["b0", f"b{number}"]),
                    events_after(instance, key, 0.0, 10),
                ):
                    assert {event.data_version for event in events.values()} == {version}
                    assert {"b0", f"b{number}"} <= events.keys()
        postgres_server.drop_database(url)
    postgres_server.drop_database(backup)
