"""Two deployments, each with its Dagster instance and its database, are on one bucket at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.resources import DatabaseResource
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.dagster import (
    COUNTS,
    DATASET,
    TABLE,
    TEXTS,
    Pipeline,
    dagster_instance,
)
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster, pytest.mark.faults]

ROWS = [("r1", "a", 2), ("r1", "b", 1), ("r3", "x", 1), ("r3", "y", 1), ("r3", "z", 1)]
ROWS += [("r4", "q", 1)]


@pytest.fixture
def deployments(
    pipeline: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path: Path
) -> Iterator[list[Pipeline]]:
    """Two over one archive, with the same hook."""
    pipeline.add_hook()
    dagster_url = postgres_server.create_database(dagster_template)
    url = postgres_server.create_database()
    resources = {**pipeline.resources, "database": DatabaseResource(url=url)}
    with dagster_instance(tmp_path / "other", dagster_url) as instance:
        other = replace(
            pipeline, database=Database(url), instance=instance, resources=resources, _defs=None
        )
        yield [pipeline, other]
    postgres_server.drop_database(dagster_url)
    postgres_server.drop_database(url)


def tick_both(deployments: list[Pipeline]) -> None:
    """Both sensors look at the inbox at the same time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Pipeline.tick, deployments))


def table_rows(deployment: Pipeline) -> list[tuple[Any, ...]]:
    return deployment.rows('select record_id, letter, "count" from features.counts order by 1, 2')


def test_batches_are_accepted_once_and_computed_once(deployments: list[Pipeline]) -> None:
    """What one deployment has computed, the other one takes from the archive."""
    first, second = deployments
    for key, texts in TEXTS.items():
        first.submit(key, texts)
    tick_both(deployments)
    tick_both(deployments)
    assert inbox.waiting(first.store) == []
    for key in TEXTS:
        assert len(log.batch_entries(first.store, DATASET, key)) == 1
        # Each knows every batch, whichever of them accepted it.
        for deployment in deployments:
            deployment.reconcile()
            assert deployment.instance.has_dynamic_partition(DATASET, key)
    for number, key in enumerate(TEXTS):
        for deployment in (first, second) if number % 2 else (second, first):
            assert deployment.run(COUNTS, key, checks=False).success
    assert sorted(first.processes()) == [["r1", "r2"], ["r3"], ["r4"]]
    for deployment in deployments:
        loaded = deployment.run(TABLE, partitions=(min(TEXTS), max(TEXTS)), checks=False)
        assert loaded.success
    check(deployments)


def check(deployments: list[Pipeline]) -> None:
    """Both tables have what the archive has, which is whole."""
    for deployment in deployments:
        assert table_rows(deployment) == ROWS
        spec = table_spec(deployment.hooks["counts"])
        assert prove(deployment.store, deployment.database, spec).is_equal
    assert verify(deployments[0].store).findings == ()
