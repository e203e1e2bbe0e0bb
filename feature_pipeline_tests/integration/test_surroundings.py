"""Variables of libpq that name other servers, or ways to reach them, have no effect."""

import dagster as dg
import psycopg
import pytest
import yaml

from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures.shell import LIBPQ

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("name", sorted(LIBPQ))
def test_the_tables_database_is_reached_by_its_url_alone(database_url, monkeypatch, name):
    monkeypatch.setenv(name, LIBPQ[name])
    with Database(database_url).connect("test") as connection:
        assert connection.execute("select 1").fetchall() == [(1,)]
        assert connection.info.dbname in database_url


def test_the_surroundings_are_unchanged(database_url, monkeypatch):
    monkeypatch.setenv("PGSERVICE", "nowhere")
    with Database(database_url).connect("test"), pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url)


def test_dagsters_storage_is_reached_by_its_url_alone(dagster_template, monkeypatch, tmp_path):
    storage = {"module": "feature_pipeline.orchestration.storage", "class": "EnvironmentStorage"}
    settings = {"storage": {"custom": {**storage, "config": {}}}, "telemetry": {"enabled": False}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    url = dagster_template.replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("DAGSTER_DATABASE_URL", url)
    for name, value in LIBPQ.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs() == []
        assert not instance.has_dynamic_partition("letters", "b1")
