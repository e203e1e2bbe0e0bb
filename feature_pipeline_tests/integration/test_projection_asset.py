"""A changed definition through Dagster: one fill requested, runs join it, the table is switched."""

from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.operations.reconcile import request_runs
from feature_pipeline.projections.switch.finalize import table_report
from feature_pipeline_tests.fixtures.dagster import (
    COUNT_COLUMNS,
    DATASET,
    TABLE,
    Pipeline,
    check_of,
)

NOTE = {"name": "note", "type": "string", "default": "none"}


def columns_of(pipeline: Pipeline) -> list[str]:
    with pipeline.database.connect("test") as connection:
        cursor = connection.execute("select * from features.counts")
        return [column.name for column in cursor.description or ()][3:]


def test_a_new_column_requests_one_fill_and_a_rebuild_run_builds_again(pipeline: Pipeline) -> None:
    pipeline.add_hook()
    for number in range(3):
        pipeline.submit(f"b{number}", {f"r{number}": "ab"})
    pipeline.tick()
    for number in range(3):
        assert pipeline.run(features_key(DATASET, "counts"), f"b{number}").success
    assert check_of(pipeline.run(TABLE, partitions=("b0", "b2")), "generation").passed
    pipeline.add_hook(feature={"columns": [*COUNT_COLUMNS, NOTE]})
    hooks = [pipeline.hooks["counts"]]
    spec = table_spec(hooks[0])
    assert pipeline.reconcile().tables == {TABLE.to_user_string(): ["b0"]}

    # The features of b2 are being computed again: automation loads them after that.
    graph = pipeline.defs.resolve_asset_graph()
    [computing] = request_runs(
        pipeline.instance, {features_key(DATASET, "counts").to_user_string(): ["b2"]}
    )

    first = check_of(pipeline.run(TABLE, "b0"), "generation")
    second = check_of(pipeline.run(TABLE, "b0"), "generation")

    assert not first.passed
    assert "building 1 of 3" in (first.description or "")
    [backfill] = [b for b in pipeline.instance.get_backfills() if b.backfill_id != computing]
    assert first.metadata["backfill"].value == backfill.backfill_id
    assert "backfill" not in second.metadata
    subset = backfill.get_asset_backfill_data(graph).target_subset.get_partitions_subset(TABLE)
    assert sorted(subset.get_partition_keys()) == ["b1"]
    assert columns_of(pipeline) == ["letter", "count"]

    # what the backfill and automation run
    assert check_of(pipeline.run(TABLE, partitions=("b1", "b2")), "generation").passed
    assert columns_of(pipeline) == ["letter", "count", "note"]

    before = table_report(pipeline.store, pipeline.database, spec)
    result = pipeline.run(TABLE, partitions=("b0", "b2"), config={"rebuild": True})
    assert check_of(result, "generation").passed
    after = table_report(pipeline.store, pipeline.database, spec)
    assert before is not None
    assert after is not None
    assert after.live != before.live
