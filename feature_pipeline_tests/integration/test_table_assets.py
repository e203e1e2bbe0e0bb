"""Table assets over a real archive, database and instance: loading, proof, staleness, triggers."""

import functools
import time

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.loader import LoadingContextForTest
from psycopg import sql

from feature_pipeline.archive import accept
from feature_pipeline.archive.logs import log
from feature_pipeline.orchestration.assets.equality_check import EQUALITY_CHECK
from feature_pipeline.orchestration.assets.records import records_event
from feature_pipeline.orchestration.assets.tables import report_shown, request_load, table_spec
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.keys import pool_of, records_key
from feature_pipeline.orchestration.operations.reconcile import request_runs
from feature_pipeline.orchestration.operations.reconcile_tables import reconcile_table
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.dagster import (
    COUNT_COLUMNS,
    COUNTS,
    DATASET,
    TABLE,
    TEXTS,
    Pipeline,
    check_of,
)

RECORDS = records_key(DATASET)


SAYS = """
import json, os
out = open(os.environ["OSA_OUT"] + "/features.jsonl", "w")
for line in open(os.environ["OSA_IN"] + "/records.jsonl"):
    rows = [{{"letter": "{word}", "count": 1}}]
    out.write(json.dumps({{"id": json.loads(line)["id"], "features": rows}}) + "\\n")
"""


@pytest.fixture
def computed(pipeline: Pipeline) -> Pipeline:
    """Three batches with features, nothing loaded."""
    pipeline.add_hook()
    pipeline.compute_all()
    return pipeline


@pytest.fixture
def loaded(computed: Pipeline) -> Pipeline:
    """Three batches with features, all in the table."""
    assert computed.run(TABLE, partitions=("b1", "b3"), checks=False).success
    return computed


def staleness(pipeline: Pipeline) -> dict[tuple[dg.AssetKey, str], str]:
    """Dagster's own answer per asset and partition: what `staleStatusByPartition` shows."""
    resolver = CachingStaleStatusResolver(
        pipeline.instance,
        pipeline.defs.resolve_asset_graph(),
        LoadingContextForTest(pipeline.instance),
    )
    return {
        (key, batch): resolver.get_status(key, batch).name
        for key in (RECORDS, COUNTS, TABLE)
        for batch in pipeline.instance.get_dynamic_partitions(DATASET)
    }


def not_fresh(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    return {
        ("/".join(key.path[1:]), batch): status
        for (key, batch), status in staleness(pipeline).items()
        if status != "FRESH"
    }


def equals_archive(pipeline: Pipeline) -> bool:
    spec = table_spec(pipeline.hooks["counts"])
    return prove(pipeline.store, pipeline.database, spec).is_equal


def data_versions(pipeline: Pipeline) -> dict[str, str]:
    records = pipeline.instance.fetch_materializations(TABLE, limit=100).records
    versions: dict[str, str] = {}
    for record in reversed(records):
        event = record.asset_materialization
        versions[event.partition] = event.tags["dagster/data_version"]
    return versions


def test_a_range_run_loads_every_batch_with_a_version_of_its_own(loaded: Pipeline):
    rows = loaded.rows("select record_id, ordinal, letter, count, batch from features.counts")
    assert sorted(rows) == [
        ("r1", 0, "a", 2, "b1"),
        ("r1", 1, "b", 1, "b1"),
        ("r3", 0, "x", 1, "b2"),
        ("r3", 1, "y", 1, "b2"),
        ("r3", 2, "z", 1, "b2"),
        ("r4", 0, "q", 1, "b3"),
    ]
    versions = data_versions(loaded)
    assert set(versions) == {"b1", "b2", "b3"}
    assert len(set(versions.values())) == 3
    assert equals_archive(loaded)


def test_nothing_is_stale_after_loading(loaded: Pipeline):
    assert not_fresh(loaded) == {}


def test_single_and_range_runs_give_the_same_data_versions(loaded: Pipeline):
    before = data_versions(loaded)
    for batch in TEXTS:
        assert loaded.run(TABLE, batch).success
    assert data_versions(loaded) == before
    assert not_fresh(loaded) == {}


def test_archived_but_not_loaded_is_missing(computed: Pipeline):
    assert not_fresh(computed) == {("tables/counts", batch): "MISSING" for batch in TEXTS}


def test_a_changed_batch_makes_its_table_partition_stale_and_no_other(loaded: Pipeline):
    loaded.add_hook(
        code="""
        import json, os
        out = open(os.environ["OSA_OUT"] + "/features.jsonl", "w")
        for line in open(os.environ["OSA_IN"] + "/records.jsonl"):
            rows = [{"letter": "!", "count": 1}]
            out.write(json.dumps({"id": json.loads(line)["id"], "features": rows}) + "\\n")
        """
    )
    assert loaded.run(COUNTS, "b2").success
    stale = not_fresh(loaded)
    assert stale.pop(("tables/counts", "b2")) == "STALE"
    # the new release makes the other batches' features stale, and only these
    assert set(stale) == {("features/counts", "b1"), ("features/counts", "b3")}
    assert loaded.run(TABLE, "b2").success
    assert loaded.rows("select letter from features.counts where batch = 'b2'") == [("!",)]
    assert ("tables/counts", "b2") not in not_fresh(loaded)


def test_an_identical_rerun_leaves_nothing_stale(loaded: Pipeline):
    assert loaded.run(COUNTS, "b1", config={"force": True}).success
    assert not_fresh(loaded) == {}


def test_a_dropped_table_comes_back_equal_by_running_the_asset_again(loaded: Pipeline):
    before = data_versions(loaded)
    loaded.rows("select 1")
    with loaded.database.connect("test") as connection:
        connection.execute("drop schema features cascade")
        connection.execute("drop schema feature_pipeline cascade")
    assert loaded.run(TABLE, partitions=("b1", "b3")).success
    assert equals_archive(loaded)
    assert data_versions(loaded) == before
    assert loaded.rows("select count(*) from features.counts") == [(6,)]


def test_a_table_changed_behind_our_back_fails_the_equality_check(loaded: Pipeline):
    with loaded.database.connect("test") as connection:
        connection.execute("update features.counts set count = 99 where record_id = 'r4'")
    result = loaded.run(TABLE, "b1")
    assert check_of(result, "equals_archive").passed  # of the run's own batch
    result = loaded.run(TABLE, partitions=("b1", "b3"))
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations()}
    assert not equals_archive(loaded)
    assert checks.get("equals_archive", False) is False


def test_outcomes_are_queryable(loaded: Pipeline):
    rows = loaded.rows(
        "select record_id, status, reason, batch from features._outcomes order by record_id"
    )
    assert rows == [
        ("r1", "passed", None, "b1"),
        ("r2", "rejected", "no letters", "b1"),
        ("r3", "passed", None, "b2"),
        ("r4", "passed", None, "b3"),
    ]


def test_decoded_again_columns_reach_the_table(loaded: Pipeline):
    columns = [*COUNT_COLUMNS, {"name": "note", "type": "string", "default": "none"}]
    loaded.add_hook(feature={"columns": columns})
    assert loaded.run(COUNTS, "b1").success
    assert loaded.run(TABLE, partitions=("b1", "b3")).success
    assert loaded.rows("select distinct note from features.counts") == [("none",)]
    assert equals_archive(loaded)


class Automation:
    """The automation sensor's evaluations, with the runs it asks for executed in this process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.cursor: dg.AutomationCondition | None = None

    def tick(self) -> dict[str, list[str]]:
        """Evaluate once; run what was requested; what that was, by asset."""
        defs, instance = self.pipeline.defs, self.pipeline.instance
        with pytest.MonkeyPatch.context() as patch:
            # asked for hundreds of times an evaluation, during which it does not change
            known = functools.cache(instance.get_dynamic_partitions)
            patch.setattr(instance, "get_dynamic_partitions", known)
            result = dg.evaluate_automation_conditions(
                defs=defs, instance=instance, cursor=self.cursor
            )
        self.cursor = result.cursor
        requested: dict[str, list[str]] = {}
        for key in (COUNTS, TABLE):
            for batch in sorted(result.get_requested_partitions(key)):
                requested.setdefault("/".join(key.path[1:]), []).append(batch)
                assert self.pipeline.run(key, batch, defs=defs).success
        return requested


def test_submitting_leads_to_rows_with_nothing_clicked(pipeline: Pipeline):
    pipeline.add_hook()
    automation = Automation(pipeline)
    assert automation.tick() == {}
    pipeline.submit_all()
    assert automation.tick() == {"features/counts": ["b1", "b2", "b3"]}
    assert automation.tick() == {"tables/counts": ["b1", "b2", "b3"]}
    assert automation.tick() == {}
    assert pipeline.rows("select count(*) from features.counts") == [(6,)]
    assert not_fresh(pipeline) == {}


def test_what_happened_before_the_first_evaluation_is_computed(pipeline: Pipeline):
    pipeline.add_hook()
    pipeline.submit("b1", TEXTS["b1"])
    pipeline.tick()
    automation = Automation(pipeline)
    assert automation.tick() == {"features/counts": ["b1"]}
    assert automation.tick() == {"tables/counts": ["b1"]}


def test_an_identical_rerun_requests_no_table_run(loaded: Pipeline):
    automation = Automation(loaded)
    automation.tick()
    assert loaded.run(COUNTS, "b1", config={"force": True}).success
    assert automation.tick() == {}
    assert automation.tick() == {}


def test_a_change_that_comes_while_an_older_one_is_loaded_is_loaded_too(loaded: Pipeline):
    """The load is no answer to what was said after it read: only its content tells."""
    automation = Automation(loaded)
    automation.tick()
    for word in ("first", "second"):
        loaded.add_hook(code=SAYS.format(word=word))
        assert loaded.run(COUNTS, "b1", checks=False).success
        if word == "first":
            assert loaded.run(TABLE, "b1", checks=False).success
    assert automation.tick() == {"tables/counts": ["b1"]}
    assert loaded.rows("select distinct letter from features.counts where batch = 'b1'") == [
        ("second",)
    ]
    # loaded by hand before the request: nothing is left to do
    loaded.add_hook(code=SAYS.format(word="third"))
    assert loaded.run(COUNTS, "b1", checks=False).success
    assert loaded.run(TABLE, "b1", checks=False).success
    assert automation.tick() == {}


def test_a_failed_run_is_not_requested_again(pipeline: Pipeline):
    pipeline.add_hook(code="import sys; sys.exit(1)")
    pipeline.submit("b1", TEXTS["b1"])
    pipeline.tick()
    automation = Automation(pipeline)
    with pytest.raises(AssertionError):
        automation.tick()
    assert automation.tick() == {}


def test_a_batch_without_an_artifact_keeps_no_other_from_the_table(computed: Pipeline):
    """Materialize all, while one hook run has failed."""
    computed.submit("b4", {"r5": "zz"})
    computed.tick()
    result = computed.run(TABLE, partitions=("b1", "b4"))
    assert result.success
    assert computed.rows("select count(distinct batch) from features.counts") == [(3,)]
    check = check_of(result, "progress")
    assert not check.passed
    assert "1 of this run have no artifact to load: b4" in check.description
    assert not computed.run(TABLE, "b4").success


def test_one_batch_of_several_that_has_an_artifact_is_the_only_one_loaded(computed: Pipeline):
    """Dagster would make an event for every partition of the run."""
    computed.submit("b4", {"r5": "zz"})
    computed.tick()
    assert computed.run(TABLE, partitions=("b3", "b4")).success
    assert computed.instance.get_materialized_partitions(TABLE) == {"b3"}


def cancel(pipeline: Pipeline, key: dg.AssetKey, batch: str) -> None:
    """A run of the partition is queued, and a user cancels it."""
    job = pipeline.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
    run = pipeline.instance.create_run_for_job(
        job, tags={"dagster/partition": batch}, asset_selection={key}
    )
    pipeline.instance.report_run_canceled(run)


def test_a_cancelled_run_is_not_requested_again_until_something_changes(pipeline: Pipeline):
    """Who stops a hook does not want it started again five seconds later."""
    pipeline.add_hook()
    for key in ("b1", "b2"):
        pipeline.submit(key, TEXTS[key])
    pipeline.tick()
    cancel(pipeline, COUNTS, "b1")
    automation = Automation(pipeline)
    assert automation.tick() == {"features/counts": ["b2"]}
    assert automation.tick() == {"tables/counts": ["b2"]}

    # the batch's records come anew, as after an erasure: that is something else to ask
    event = records_event(
        log.batch_entry(pipeline.store, DATASET, "b1"),
        log.read_batch(pipeline.store, DATASET, "b1"),
    )
    pipeline.instance.report_runless_asset_event(event)
    assert automation.tick() == {"features/counts": ["b1"]}

    # an input that changes while nothing evaluates, and a run for it that a user cancels
    assert automation.tick() == {"tables/counts": ["b1"]}
    pipeline.add_hook(code=SAYS.format(word="changed"))
    assert pipeline.run(COUNTS, "b1", checks=False).success
    cancel(pipeline, TABLE, "b1")
    late = Automation(pipeline)
    assert late.tick() == {}
    assert late.tick() == {}


def call_off(pipeline: Pipeline, backfill_id: str) -> None:
    backfill = pipeline.instance.get_backfill(backfill_id)
    pipeline.instance.update_backfill(
        backfill.with_status(BulkActionStatus.CANCELED).with_end_timestamp(time.time())
    )


def test_a_cancelled_backfill_is_called_off_with_the_runs_it_had_not_begun(pipeline: Pipeline):
    pipeline.add_hook()
    for key in TEXTS:
        pipeline.submit(key, TEXTS[key])
    pipeline.tick()
    call_off(pipeline, request_load(pipeline.instance, COUNTS, ["b1", "b2"], "fill"))
    automation = Automation(pipeline)
    assert automation.tick() == {"features/counts": ["b3"]}
    assert automation.tick() == {"tables/counts": ["b3"]}
    assert automation.tick() == {}
    pipeline.submit("b4", {"r9": "new"})
    pipeline.tick()
    assert automation.tick() == {"features/counts": ["b4"]}


def test_reconciliation_asks_for_nothing_that_is_under_way(computed: Pipeline):
    lacking = {TABLE.to_user_string(): list(TEXTS)}
    request_load(computed.instance, TABLE, ["b1"], "fill")
    (first,) = request_runs(computed.instance, lacking)
    asked = computed.instance.get_backfill(first).asset_backfill_data.target_subset
    assert set(asked.get_partitions_subset(TABLE).get_partition_keys()) == {"b2", "b3"}
    assert request_runs(computed.instance, lacking) == []
    call_off(computed, first)
    assert len(request_runs(computed.instance, lacking)) == 1


def test_a_difference_is_named_until_it_is_repaired(loaded: Pipeline):
    """A load of another batch must not turn the check green."""
    with loaded.database.connect("test") as connection:
        (relation,) = connection.execute(
            "select relation from feature_pipeline.generations"
        ).fetchone()
        connection.execute(
            sql.SQL("update feature_pipeline.{} set count = 77 where batch = 'b3'").format(
                sql.Identifier(relation)
            )
        )

    job = loaded.defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(),
        asset_check_selection={dg.AssetCheckKey(TABLE, EQUALITY_CHECK)},
    )
    whole = job.execute_in_process(instance=loaded.instance)
    assert not check_of(whole, EQUALITY_CHECK).passed
    other = check_of(loaded.run(TABLE, "b1"), EQUALITY_CHECK)
    assert not other.passed
    assert other.metadata["batches"].value == ["b3"]
    spec = table_spec(loaded.hooks["counts"])
    list(load_batches(loaded.store, loaded.database, spec, ["b3"], is_forced=True))
    assert check_of(loaded.run(TABLE, "b1"), EQUALITY_CHECK).passed


def test_the_first_tick_sets_the_pools(pipeline: Pipeline):
    pipeline.add_hook(release={"concurrency": 2})
    sensor = pipeline.defs.resolve_sensor_def("inbox")
    names = ("archive", "hook_runner")
    resources = {name: pipeline.resources[name] for name in names}
    with dg.build_sensor_context(pipeline.instance, resources=resources) as context:
        sensor(context)
    limits = {p.name: p.limit for p in pipeline.instance.event_log_storage.get_pool_limits()}
    assert limits == {pool_of(DATASET, "counts"): 2}


def test_on_request_runs_nothing_unattended(pipeline: Pipeline):
    pipeline.add_hook(compute="on_request", table={"materialize": "on_request"})
    automation = Automation(pipeline)
    automation.tick()
    pipeline.submit("b1", TEXTS["b1"])
    pipeline.tick()
    assert automation.tick() == {}
    assert pipeline.run(COUNTS, "b1").success
    assert automation.tick() == {}


def test_inbox_entries_go_once_their_events_are_in_dagster(computed: Pipeline):
    for _ in range(2):
        computed.tick()
    assert accept.waiting(computed.store) == []


def test_a_repeated_tick_appends_nothing(pipeline: Pipeline):
    """A daemon that dies before it stores a tick's events repeats the tick."""
    from feature_pipeline.orchestration.sensors.inbox import accept_inbox

    pipeline.add_hook()
    pipeline.submit("b1", TEXTS["b1"])
    for _ in range(2):
        tick = accept_inbox(pipeline.store, pipeline.archive_uri, pipeline.instance)
        assert [event.partition for event in tick.events] == ["b1"]
    assert len(log.batch_entries(pipeline.store, DATASET, "b1")) == 1
    assert pipeline.instance.get_dynamic_partitions(DATASET) == []


def test_a_run_that_automation_requests_proves_what_it_loads(loaded: Pipeline):
    """Such a run executes the checks that belong to the load, and no others."""
    proved = check_of(loaded.run(TABLE, "b1", checks=False), EQUALITY_CHECK)
    assert (proved.passed, proved.metadata["rows"].value) == (True, 2)

    loaded.rows("update features.counts set letter = 'w' where batch = 'b2' returning 1")
    wrong = check_of(loaded.run(TABLE, "b2", checks=False), EQUALITY_CHECK)
    assert (wrong.passed, wrong.metadata["batches"].value) == (False, ["b2"])
    still = check_of(loaded.run(TABLE, "b1", checks=False), EQUALITY_CHECK)
    assert (still.passed, still.metadata["batches"].value) == (False, ["b2"])


def test_dagster_shows_the_columns_and_rows_that_postgresql_has(loaded: Pipeline):
    def shown() -> list[dict[str, dg.MetadataValue]]:
        records = loaded.instance.fetch_materializations(TABLE, limit=100).records
        return [record.asset_materialization.metadata for record in records]

    newest, *earlier = shown()
    assert newest["dagster/row_count"].value == 6
    columns = {c.name: c for c in newest["dagster/column_schema"].schema.columns}
    assert {name: column.type for name, column in columns.items()} == dict(
        loaded.rows(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = 'features.counts'::regclass and attnum > 0"
        )
    )
    # Dagster plots every number, one event after the other: none is of one batch alone.
    numbers = (dg.IntMetadataValue, dg.FloatMetadataValue)
    for metadata in (newest, *earlier):
        plotted = {name for name, value in metadata.items() if isinstance(value, numbers)}
        assert plotted <= {"dagster/row_count"}
        assert metadata["batch"].value["rows"] in {1, 2, 3}


def test_columns_that_changed_without_a_load_are_shown_too(loaded: Pipeline):
    """As after a rollback: the columns of the last load stayed."""
    database = Database(loaded.resources["database"].url)
    hook = loaded.hooks["counts"]
    before = latest_events(loaded.instance, TABLE, ["b1", "b2", "b3"])
    assert not report_shown(loaded.instance, hook, database)
    with database.connect("test") as connection:
        connection.execute("comment on column features.counts.letter is 'Other words.'")

    heads = log.heads(loaded.store, DATASET, "counts")
    args = (loaded.store, loaded.archive_uri, database, loaded.instance, hook, heads)
    assert reconcile_table(*args).reported == []

    event = loaded.instance.get_latest_materialization_event(TABLE)
    assert event is not None
    assert event.asset_materialization is not None
    schema = event.asset_materialization.metadata["dagster/column_schema"].value
    assert "Other words." in {column.description for column in schema.columns}
    after = latest_events(loaded.instance, TABLE, ["b1", "b2", "b3"])
    assert {b: e.tags for b, e in after.items()} == {b: e.tags for b, e in before.items()}
    assert not report_shown(loaded.instance, hook, database)
