"""The drill: every database lost, everything restored from S3 and the code; and drift repaired."""

import os
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.events import EngineEventData
from dagster._core.loader import LoadingContextForTest
from dagster._core.utils import make_new_run_id

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.assets.tables import PROGRESS_CHECK
from feature_pipeline.orchestration.events.data_versions import feature_code_version
from feature_pipeline.orchestration.events.staleness import stale_partitions
from feature_pipeline.orchestration.keys import features_key, pool_of, records_key, table_key
from feature_pipeline.orchestration.operations.reconcile import Drift, reconcile, request_runs
from feature_pipeline.orchestration.operations.recover import (
    prove_tables,
    recover_dagster,
    recover_table,
    tables_to_recover,
)
from feature_pipeline.orchestration.sensors.dead_runs import fail_dead_runs
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures.dagster import (
    COUNT_HOOK,
    COUNTS,
    DATASET,
    TABLE,
    TEXTS,
    Pipeline,
    dagster_instance,
)
from feature_pipeline_tests.fixtures.postgres import PostgresAddress
from feature_pipeline_tests.integration.test_table_assets import SAYS, not_fresh

RECORDS = records_key(DATASET)


def versions(pipeline: Pipeline) -> dict[tuple[str, str], tuple[str, str]]:
    """Data and code version of every asset's partitions, as Dagster has them."""
    by_partition = {}
    for key in (RECORDS, COUNTS, TABLE):
        for record in reversed(pipeline.instance.fetch_materializations(key, limit=1000).records):
            event = record.asset_materialization
            tags = event.tags
            by_partition["/".join(key.path), event.partition] = (
                tags["dagster/data_version"],
                tags["dagster/code_version"],
            )
    return by_partition


@pytest.fixture
def loaded(pipeline: Pipeline) -> Pipeline:
    pipeline.add_hook(release={"concurrency": 3})
    pipeline.load_all()
    return pipeline


def test_everything_comes_back_from_s3_and_the_code(
    loaded: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path
):
    before = versions(loaded)
    rows = sorted(loaded.rows("select * from features.counts"))
    partitions = loaded.instance.get_dynamic_partitions(DATASET)

    # both databases are gone; new, empty ones take their place
    tables_url = postgres_server.create_database()
    dagster_url = postgres_server.create_database(dagster_template)
    loaded.database = Database(tables_url)
    hooks = list(loaded.hooks.values())
    with dagster_instance(tmp_path / "new-home", dagster_url) as instance:
        loaded.instance = instance
        assert versions(loaded) == {}
        drift = recover_dagster(loaded.store, loaded.archive_uri, instance, hooks)
        assert drift.partitions == {DATASET: ["b1", "b2", "b3"]}
        wanted = tables_to_recover(hooks, [])
        for hook in wanted:
            reports = list(recover_table(loaded.store, instance, loaded.database, hook))
            assert {report.batch for report in reports} == set(TEXTS)

        assert versions(loaded) == before
        assert instance.get_dynamic_partitions(DATASET) == partitions
        assert sorted(loaded.rows("select * from features.counts")) == rows
        assert not_fresh(loaded) == {}
        proofs = prove_tables(loaded.store, loaded.database, wanted)
        assert all(proof.is_equal for proof in proofs.values())
        limits = {p.name: p.limit for p in instance.event_log_storage.get_pool_limits()}
        assert limits[pool_of(DATASET, "counts")] == 3

        # repeating it reports nothing again
        events = sum(len(_all(instance, key)) for key in (RECORDS, COUNTS, TABLE))
        assert recover_dagster(loaded.store, loaded.archive_uri, instance, hooks) == Drift()
        for hook in wanted:
            list(recover_table(loaded.store, instance, loaded.database, hook))
        assert sum(len(_all(instance, key)) for key in (RECORDS, COUNTS, TABLE)) == events
    postgres_server.drop_database(tables_url)
    postgres_server.drop_database(dagster_url)


AFTER_HOOK = """
import json, os
from pathlib import Path
inputs = Path(os.environ["OSA_IN"])
out = open(os.environ["OSA_OUT"] + "/features.jsonl", "w")
for line in (inputs / "features" / "counts.jsonl").open():
    answer = json.loads(line)
    rows = [{"letter": "all", "count": sum(row["count"] for row in answer["features"])}]
    out.write(json.dumps({"id": answer["id"], "features": rows}) + "\\n")
"""


def test_what_was_made_from_older_input_is_stale_after_recovery_and_is_made_again(
    loaded: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path
):
    """Dagster compares events, not what was noted of them."""
    loaded.add_hook("after", AFTER_HOOK, inputs=["counts"])
    after = features_key(DATASET, "after")
    for key in TEXTS:
        assert loaded.run(after, key).success
    loaded.add_hook(code=SAYS.format(word="other"))
    assert loaded.run(COUNTS, "b1", checks=False).success
    dagster_url = postgres_server.create_database(dagster_template)
    hooks = list(loaded.hooks.values())
    with dagster_instance(tmp_path / "new-home", dagster_url) as instance:
        loaded.instance = instance
        recover_dagster(loaded.store, loaded.archive_uri, instance, hooks)
        resolver = CachingStaleStatusResolver(
            instance, loaded.defs.resolve_asset_graph(), LoadingContextForTest(instance)
        )
        named = {batch: resolver.get_status(after, batch).name for batch in TEXTS}
        assert named == {"b1": "STALE", "b2": "FRESH", "b3": "FRESH"}
        definition = loaded.hooks["after"]
        code_version = feature_code_version(
            definition.hook_release(loaded.folder),
            definition.feature.columns,
            definition.feature.cardinality.value,
        )
        stale = stale_partitions(instance, after, code_version, [RECORDS, COUNTS], TEXTS)
        assert stale == {"b1"}
        asked = dg.evaluate_automation_conditions(defs=loaded.defs, instance=instance)
        assert asked.get_requested_partitions(after) == {"b1"}
        # and where automation has not seen it, or not in time
        again = recover_dagster(loaded.store, loaded.archive_uri, instance, hooks)
        assert again.behind == {after.to_user_string(): ["b1"]}
        assert (again.unfounded, again.lost, again.features) == ({}, {}, {})
    postgres_server.drop_database(dagster_url)


def test_a_changed_description_makes_nothing_stale(loaded: Pipeline):
    columns = [
        {"name": "letter", "type": "string", "required": True, "description": "Which one."},
        {"name": "count", "type": "integer", "required": True, "unit": "1"},
    ]
    loaded.add_hook(release={"concurrency": 3}, feature={"columns": columns})
    assert not_fresh(loaded) == {}
    loaded.add_hook(release={"concurrency": 3}, feature={"columns": columns, "cardinality": "one"})
    assert not_fresh(loaded) != {}


def test_an_artifact_that_is_gone_from_the_log_is_named(loaded: Pipeline):
    """A bucket restored from an older copy: Dagster is green, and S3 is the truth."""
    head = log.head(loaded.store, DATASET, "counts", "b2")
    loaded.store.delete(layout.entry(layout.feature_log(DATASET, "counts", "b2"), head.seq))
    job = loaded.defs.resolve_job_def("reconcile")
    result = job.execute_in_process(instance=loaded.instance, raise_on_error=False)
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    shown = failure.step_failure_data.user_failure_data
    lost = shown.metadata["lost"].value
    assert {asset: list(batches) for asset, batches in lost.items()} == {
        COUNTS.to_user_string(): ["b2"],
        TABLE.to_user_string(): ["b2"],
    }
    assert head.manifest.short in lost[COUNTS.to_user_string()]["b2"]
    assert "batches lost from the archive of letters/features/counts: 1" in shown.description
    assert "feature-pipeline repair" in shown.description
    # nothing computes the batch again while it is not decided that the artifact is given up
    assert loaded.instance.get_backfills() == []


def damage(pipeline: Pipeline, digest: Digest) -> None:
    """Other bytes of the same length lie under the blob's name."""
    key = layout.blob(digest)
    stored = pipeline.store.get(key)
    data = bytes([stored.data[0] ^ 1]) + stored.data[1:]
    assert pipeline.store.replace(key, data, stored.info.etag)


def test_what_is_damaged_does_not_keep_the_rest_from_coming_back(
    loaded: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path
):
    loaded.add_hook("other")
    other = features_key(DATASET, "other")
    for key in TEXTS:
        assert loaded.run(other, key).success
    heads = log.heads(loaded.store, DATASET, "counts")
    damage(loaded, heads["b1"].manifest)
    damage(loaded, read.read_manifest(loaded.store, heads["b2"].manifest).blobs["rows"].digest)
    tables_url = postgres_server.create_database()
    dagster_url = postgres_server.create_database(dagster_template)
    database = Database(tables_url)
    hooks = list(loaded.hooks.values())
    with dagster_instance(tmp_path / "new-home", dagster_url) as instance:
        drift = recover_dagster(loaded.store, loaded.archive_uri, instance, hooks)
        assert list(drift.damaged) == [COUNTS.to_user_string()]
        assert list(drift.damaged[COUNTS.to_user_string()]) == ["b1"]
        assert instance.get_materialized_partitions(COUNTS) == {"b2", "b3"}
        assert instance.get_materialized_partitions(other) == set(TEXTS)
        reports: list[str] = []

        def recover() -> None:
            for report in recover_table(loaded.store, instance, database, loaded.hooks["counts"]):
                reports.append(report.batch)

        with pytest.raises(CorruptDataError, match="2 damaged or incomplete") as raised:
            recover()
        assert "batch 'b1'" in str(raised.value)
        assert "batch 'b2'" in str(raised.value)
        assert instance.get_materialized_partitions(TABLE) == {"b3"}
        # what is left is reported until it is repaired
        again = recover_dagster(loaded.store, loaded.archive_uri, instance, hooks)
        assert again != Drift()
    postgres_server.drop_database(tables_url)
    postgres_server.drop_database(dagster_url)


def _all(instance: dg.DagsterInstance, key: dg.AssetKey) -> list:
    return list(instance.fetch_materializations(key, limit=1000).records)


def test_reconcile_finds_nothing_after_ordinary_work(loaded: Pipeline):
    drift = loaded.reconcile()
    assert drift.summary() == "no drift"


def test_reconcile_lists_what_a_table_lacks(loaded: Pipeline):
    with loaded.database.connect("test") as connection:
        connection.execute("delete from feature_pipeline.progress where batch = 'b2'")
    loaded.instance.add_dynamic_partitions(DATASET, ["stray"])
    drift = loaded.reconcile()
    assert drift.tables == {TABLE.to_user_string(): ["b2"]}
    assert drift.unknown_partitions == {DATASET: ["stray"]}


def test_a_table_on_request_that_lost_its_rows_is_named_by_its_check(loaded: Pipeline):
    """Nothing loads it again by itself, and its partitions stay green in Dagster."""
    hook = loaded.add_hook(table={"materialize": "on_request"})
    check = dg.AssetCheckKey(TABLE, PROGRESS_CHECK)

    def reconciled() -> Drift:
        return reconcile(loaded.store, loaded.archive_uri, loaded.instance, loaded.database, [hook])

    def evaluations() -> list[tuple[bool, list[str]]]:
        records = loaded.instance.event_log_storage.get_asset_check_execution_history(
            check, limit=10
        )
        named = [r.event.dagster_event.asset_check_evaluation_data for r in records]
        return [(each.passed, each.metadata["batches"].value) for each in named]

    assert reconciled() == Drift()
    before = len(evaluations())
    with loaded.database.connect("test") as connection:
        connection.execute("delete from feature_pipeline.progress where batch <> 'b2'")
    for _ in range(2):
        assert reconciled().unloaded == {TABLE.to_user_string(): ["b1", "b3"]}
        assert len(evaluations()) == before + 1
    assert evaluations()[0] == (False, ["b1", "b3"])
    # the load of another batch does not turn it green
    for batch, named in (("b2", ["b1", "b3"]), ("b1", ["b3"]), ("b3", [])):
        assert loaded.run(TABLE, batch, checks=False).success
        assert evaluations()[0] == (not named, named)
    assert reconciled() == Drift()
    with loaded.database.connect("test") as connection:
        connection.execute("drop view features.counts")
    assert reconciled().unloaded == {TABLE.to_user_string(): ["b1", "b2", "b3"]}
    assert loaded.run(TABLE, "b2", checks=False).success
    assert evaluations()[0] == (True, [])
    assert reconciled() == Drift()


def test_what_a_table_lacks_is_requested_as_one_backfill(loaded: Pipeline):
    graph = loaded.defs.resolve_asset_graph()
    (backfill_id,) = request_runs(loaded.instance, {TABLE.to_user_string(): ["b1", "b2"]})
    (backfill,) = loaded.instance.get_backfills()
    assert backfill.backfill_id == backfill_id
    subset = backfill.get_asset_backfill_data(graph).get_target_partitions_subset(TABLE)
    assert list(backfill.asset_selection) == [TABLE]
    assert set(subset.get_partition_keys()) == {"b1", "b2"}


def test_the_reconcile_job_runs_in_the_code_location(loaded: Pipeline):
    job = loaded.defs.resolve_job_def("reconcile")
    assert job.execute_in_process(instance=loaded.instance).success
    assert loaded.instance.get_backfills() == []


def test_features_of_features_recover_with_pointers_to_their_inputs(
    pipeline: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path
):
    pipeline.add_hook()
    # named so that it sorts before its input
    pipeline.add_hook("after", code=COUNT_HOOK, inputs=["counts"])
    pipeline.submit("b1", TEXTS["b1"])
    pipeline.tick()
    after = features_key(DATASET, "after")
    for key in (COUNTS, after, TABLE, table_key(DATASET, "after")):
        assert pipeline.run(key, "b1").success
    url = postgres_server.create_database(dagster_template)
    with dagster_instance(tmp_path / "new-home", url) as instance:
        pipeline.instance = instance
        hooks = list(pipeline.hooks.values())
        recover_dagster(pipeline.store, pipeline.archive_uri, instance, hooks)
        (record,) = _all(instance, after)
        (source,) = _all(instance, COUNTS)
        tags = record.asset_materialization.tags
        pointer = "dagster/input_event_pointer/letters/features/counts"
        assert tags[pointer] == str(source.storage_id)
        version = "dagster/input_data_version/letters/features/counts"
        assert tags[version] == source.asset_materialization.tags["dagster/data_version"]
    postgres_server.drop_database(url)


def test_a_run_whose_worker_died_is_failed(pipeline: Pipeline):
    """A worker that reported its pid and was then killed."""
    instance = pipeline.instance
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    runs = {}
    for pid in (dead.pid, os.getpid()):
        run = instance.create_run_for_job(
            pipeline_job(), run_id=make_new_run_id(), status=dg.DagsterRunStatus.STARTED
        )
        instance.report_engine_event(
            "Executing steps in process",
            run,
            EngineEventData.in_process(pid),
        )
        runs[pid] = run.run_id
    assert fail_dead_runs(instance) == [runs[dead.pid]]
    assert instance.get_run_by_id(runs[dead.pid]).status is dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(runs[os.getpid()]).status is dg.DagsterRunStatus.STARTED


def pipeline_job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def empty() -> None:
        nothing()

    return empty
