"""What people and other programs do behind the pipeline's back is found, named and put right."""

import dagster as dg
import pytest

from feature_pipeline.archive.logs import log
from feature_pipeline.orchestration.checks.outcomes import EQUALITY_CHECK
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.operations.reconcile import Drift
from feature_pipeline_tests.fixtures.dagster import COUNTS, DATASET, TABLE, TEXTS, Pipeline

NAME, TABLE_NAME = COUNTS.to_user_string(), TABLE.to_user_string()


@pytest.fixture
def loaded(pipeline: Pipeline) -> Pipeline:
    pipeline.add_hook()
    pipeline.load_all()
    return pipeline


def report(pipeline: Pipeline, key: dg.AssetKey, partition: str) -> None:
    """A materialization as the UI reports one by hand."""
    pipeline.instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=key, partition=partition)
    )


def test_rows_changed_by_hand_are_named_and_replaced(loaded: Pipeline):
    before = sorted(loaded.rows("select * from features.counts"))
    assert loaded.reconcile() == Drift()
    with loaded.database.connect("by hand") as connection:
        connection.execute("update features.counts set count = count + 1 where batch = 'b2'")
    assert loaded.reconcile().changed == {TABLE_NAME: ["b2"]}
    with loaded.database.connect("by hand") as connection:
        connection.execute("delete from features.counts where batch = 'b1'")
        connection.execute(
            "update feature_pipeline.outcomes set status = 'rejected' where batch = 'b3'"
        )
    drift = loaded.reconcile()
    assert drift.changed == {TABLE_NAME: ["b1", "b2", "b3"]}
    assert drift.to_rebuild == {TABLE_NAME: ["b1", "b2", "b3"]}
    check = dg.AssetCheckKey(TABLE, EQUALITY_CHECK)
    history = loaded.instance.event_log_storage.get_asset_check_execution_history
    evaluation = history(check, limit=1)[0].event.dagster_event.asset_check_evaluation_data
    assert not evaluation.passed
    assert evaluation.metadata["batches"].value == ["b1", "b2", "b3"]
    # the run that the job requests
    config = {"rebuild": True}
    result = loaded.run(TABLE, partitions=("b1", "b3"), config=config, checks=False)
    assert result.success
    assert sorted(loaded.rows("select * from features.counts")) == before
    assert loaded.reconcile() == Drift()
    assert history(check, limit=1)[0].event.dagster_event.asset_check_evaluation_data.passed


def test_materializations_of_a_table_that_were_wiped_or_made_by_hand_are_reported_again(
    loaded: Pipeline,
):
    versions = {
        batch: event.data_version
        for batch, event in latest_events(loaded.instance, TABLE, TEXTS).items()
    }
    report(loaded, TABLE, "b1")
    assert loaded.reconcile().table_events == {TABLE_NAME: ["b1"]}
    assert latest_events(loaded.instance, TABLE, TEXTS)["b1"].data_version == versions["b1"]
    loaded.instance.wipe_assets([TABLE])
    assert loaded.reconcile().table_events == {TABLE_NAME: ["b1", "b2", "b3"]}
    assert {
        batch: event.data_version
        for batch, event in latest_events(loaded.instance, TABLE, TEXTS).items()
    } == versions
    assert loaded.reconcile() == Drift()


def test_materializations_made_by_hand_without_an_artifact_are_named_and_run(loaded: Pipeline):
    """They fail no job: nothing is wrong with the archive."""
    loaded.add_hook("other", compute="on_request")
    other = features_key(DATASET, "other")
    loaded.submit("b4", {"r9": "abc"})
    loaded.tick()
    for key, batch in ((COUNTS, "b1"), (COUNTS, "b4"), (TABLE, "b4"), (other, "b1")):
        report(loaded, key, batch)
    drift = loaded.reconcile()
    assert drift.features == {NAME: ["b1"]}
    assert drift.unfounded == {NAME: ["b4"], TABLE_NAME: ["b4"], other.to_user_string(): ["b1"]}
    # a hook that computes on request is asked for by people alone
    assert drift.behind == {NAME: ["b4"]}
    assert (drift.lost, drift.damaged) == ({}, {})
    assert loaded.run(COUNTS, "b4", checks=False).success
    assert log.head(loaded.store, DATASET, "counts", "b4") is not None
    drift = loaded.reconcile()
    assert drift.unfounded == {other.to_user_string(): ["b1"]}
    assert drift.tables == {TABLE_NAME: ["b4"]}
