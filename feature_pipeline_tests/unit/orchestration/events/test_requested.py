"""Which partitions a user called off."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest

from feature_pipeline.orchestration.dagster_internals import (
    AssetGraphSubset,
    BulkActionStatus,
    PartitionBackfill,
)
from feature_pipeline.orchestration.events.requested import cancelled_partitions
from feature_pipeline.orchestration.keys import batches_partitions, features_key

KEY = features_key("d", "size")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("d", ["b1", "b2"])
        yield instance


def cancelled_run_of_backfill(instance: dg.DagsterInstance, status: BulkActionStatus) -> None:
    """A run of b1 that was cancelled, and its backfill of b1 and b2."""

    @dg.asset(key=KEY, partitions_def=batches_partitions("d"))
    def size() -> None: ...

    subset = batches_partitions("d").empty_subset().with_partition_keys(["b1", "b2"])
    backfill = PartitionBackfill.from_asset_graph_subset(
        backfill_id="backfill",
        backfill_timestamp=time.time(),
        tags={},
        dynamic_partitions_store=instance,
        asset_graph_subset=AssetGraphSubset({KEY: subset}, set()),  # type: ignore[call-arg]
        title=None,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill.with_status(status))
    run = instance.create_run_for_job(
        dg.Definitions(assets=[size]).resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset([KEY]),
        tags={"dagster/partition": "b1", "dagster/backfill": "backfill"},
        status=dg.DagsterRunStatus.STARTED,
    )
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
