"""Which partitions a user called off, and which are about to run."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest

from feature_pipeline.orchestration.dagster_internals import (
    AssetGraphSubset,
    BulkActionStatus,
    PartitionBackfill,
)
from feature_pipeline.orchestration.events.requested import (
    cancelled_partitions,
    partitions_under_way,
)
from feature_pipeline.orchestration.keys import batches_partitions, features_key

KEY = features_key("d", "size")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("d", ["b1", "b2"])
        yield instance


@dg.asset(key=KEY, partitions_def=batches_partitions("d"))
def size() -> None: ...


def subset(*batches: str) -> AssetGraphSubset:
    chosen = batches_partitions("d").empty_subset().with_partition_keys(batches)
    return AssetGraphSubset({KEY: chosen}, set())  # type: ignore[call-arg]


def backfill_of(instance: dg.DagsterInstance, *batches: str) -> PartitionBackfill:
    return PartitionBackfill.from_asset_graph_subset(
        backfill_id="backfill",
        backfill_timestamp=time.time(),
        tags={},
        dynamic_partitions_store=instance,
        asset_graph_subset=subset(*batches),
        title=None,
        description=None,
        run_config=None,
    )


def start_run(instance: dg.DagsterInstance, batch: str) -> dg.DagsterRun:
    return instance.create_run_for_job(
        dg.Definitions(assets=[size]).resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset([KEY]),
        tags={"dagster/partition": batch, "dagster/backfill": "backfill"},
        status=dg.DagsterRunStatus.STARTED,
    )


def cancelled_run_of_backfill(instance: dg.DagsterInstance, status: BulkActionStatus) -> None:
    """A run of b1 that was cancelled, and its backfill of b1 and b2."""
    instance.add_backfill(backfill_of(instance, "b1", "b2").with_status(status))
    run = start_run(instance, "b1")
    instance.report_run_canceling(run)
    instance.report_run_canceled(run)


def test_what_a_user_cancelled_is_called_off(instance: dg.DagsterInstance) -> None:
    cancelled_run_of_backfill(instance, BulkActionStatus.COMPLETED_FAILED)
    assert cancelled_partitions(instance, KEY).keys() == {"b1"}


def test_a_cancelled_backfill_is_called_off_with_what_it_had_not_begun(
    instance: dg.DagsterInstance,
) -> None:
    cancelled_run_of_backfill(instance, BulkActionStatus.CANCELED)
    assert cancelled_partitions(instance, KEY).keys() == {"b1", "b2"}


@pytest.mark.parametrize("status", [BulkActionStatus.FAILING, BulkActionStatus.FAILED])
def test_runs_that_the_daemon_cancelled_with_a_backfill_it_gave_up_are_not_called_off(
    instance: dg.DagsterInstance, status: BulkActionStatus
) -> None:
    """As when the code location did not load: automation asks for these batches again."""
    cancelled_run_of_backfill(instance, status)
    assert cancelled_partitions(instance, KEY) == {}


def test_a_backfill_is_about_to_run_what_it_has_not_requested(
    instance: dg.DagsterInstance,
) -> None:
    """Of what it has requested, the run that failed is over: nothing else repeats it."""
    instance.add_dynamic_partitions("d", ["b3", "b4"])
    backfill = backfill_of(instance, "b1", "b2", "b3", "b4")
    data = backfill.asset_backfill_data
    assert data is not None
    data = data.replace_requested_subset(subset("b1", "b2"))
    data = data.with_failed_and_downstream_subset(subset("b3"))
    graph = dg.Definitions(assets=[size]).resolve_asset_graph()
    instance.add_backfill(backfill.with_asset_backfill_data(data, instance, graph))
    instance.report_run_failed(start_run(instance, "b1"))
    assert partitions_under_way(instance, KEY) == {"b4"}
