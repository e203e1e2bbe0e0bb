"""Who waits for whom: loads have slots of their own, and what a person starts is not last."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
import yaml
from dagster._core.execution import asset_backfill
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import AUTOMATION_CONDITION_TAG, PRIORITY_TAG
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from feature_pipeline.cli.project import Project
from feature_pipeline.orchestration.keys import (
    RECONCILE_TAG,
    REPEAT_TAG,
    batches_partitions,
    features_key,
    pool_of,
    records_key,
    table_key,
)
from feature_pipeline.orchestration.run_queue import COMPUTE, LOAD, WORK_TAG, queue_tags
from feature_pipeline_tests.fixtures.queued_runs import CODE_ORIGIN, ORIGIN

ROOT = Path(__file__).parents[3]
HOOK, OTHER, TABLE = features_key("d", "slow"), features_key("d", "other"), table_key("d", "t")
BY_AUTOMATION = {AUTOMATION_CONDITION_TAG: "true"}


class Queue:
    """A real queue of Dagster, and what its daemon would take from it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        assets = [self._asset(key) for key in (HOOK, OTHER, TABLE)]
        self.job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()

    @staticmethod
    def _asset(key: dg.AssetKey) -> dg.AssetsDefinition:
        pool = None if key == TABLE else pool_of("d", key.path[-1])

        @dg.asset(key=key, partitions_def=batches_partitions("d"), pool=pool)
        def nothing() -> None: ...

        return nothing

    def submit(self, key: dg.AssetKey, tags: dict[str, str] | None = None) -> str:
        run = self.instance.create_run_for_job(
            self.job,
            asset_selection=frozenset([key]),
            tags={**(tags or {}), "asset": key.path[-1]},
            remote_job_origin=ORIGIN,
            job_code_origin=CODE_ORIGIN,
        )
        context = cast("SubmitRunContext", SimpleNamespace(dagster_run=run))
        self.instance.run_coordinator.submit_run(context)
        return run.run_id

    def taken(self) -> list[str]:
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
        config = self.instance.get_concurrency_config()
        runs = daemon._get_runs_to_dequeue(self.instance, config, fixed_iteration_time=None)
        return [run.tags["asset"] for run in runs]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """As `dev` configures it on a machine of two cores."""
    Project(ROOT).prepare_dagster_home(tmp_path, 2)
    config = yaml.safe_load((tmp_path / "dagster.yaml").read_text())
    del config["storage"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield Queue(instance)


def test_hooks_leave_slots_to_loads(queue: Queue) -> None:
    for _ in range(5):
        queue.submit(HOOK, BY_AUTOMATION)
    for _ in range(3):
        queue.submit(TABLE)
    assert queue.taken() == ["t", "t", "t", "slow"]


def test_what_a_person_starts_is_taken_before_what_runs_unattended(queue: Queue) -> None:
    for _ in range(5):
        queue.submit(HOOK, BY_AUTOMATION)
    queue.submit(OTHER)
    assert queue.taken() == ["other", "slow"]


def test_runs_that_wait_for_their_pool_take_no_slot_of_another_hook(queue: Queue) -> None:
    queue.instance.event_log_storage.set_concurrency_slots(pool_of("d", "slow"), 1)
    for _ in range(5):
        queue.submit(HOOK, BY_AUTOMATION)
    for _ in range(5):
        queue.submit(OTHER, BY_AUTOMATION)
    assert queue.taken() == ["slow", "other", "other"]


@pytest.mark.parametrize(
    ("assets", "tags", "added"),
    [
        ([TABLE], {}, {WORK_TAG: LOAD, PRIORITY_TAG: "10"}),
        ([TABLE, HOOK], BY_AUTOMATION, {WORK_TAG: COMPUTE}),
        ([records_key("d")], {}, {WORK_TAG: COMPUTE, PRIORITY_TAG: "5"}),
        ([HOOK], {PRIORITY_TAG: "-3"}, {WORK_TAG: COMPUTE}),
        ([HOOK], {RECONCILE_TAG: "true"}, {WORK_TAG: COMPUTE}),
        ([HOOK], {REPEAT_TAG: "1"}, {WORK_TAG: COMPUTE}),
        ([], {"dagster/schedule_name": "x"}, {}),
        (None, {}, {PRIORITY_TAG: "5"}),
    ],
)
def test_tags(
    assets: list[dg.AssetKey] | None, tags: dict[str, str], added: dict[str, str]
) -> None:
    assert queue_tags(assets, tags) == added


def test_backfills_wait_for_a_code_location_that_does_not_load() -> None:
    """Dagster's own switch; the daemon imports the queue, which sets it."""
    source = inspect.getsource(asset_backfill)
    name = "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR"
    assert f'os.environ.get("{name}")' in source
    module = "feature_pipeline.orchestration.run_queue"
    program = f"import os, {module}; print(os.environ[{name!r}])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "1\n"
