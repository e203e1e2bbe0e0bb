"""The daemon dies between any two steps of a tick: nothing is lost, no log entry is repeated."""

import json
import shutil
from functools import partial

import pytest

from feature_pipeline.archive import accept
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.manifest import RunInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.publish import (
    publish_and_enqueue,
)
from feature_pipeline.compute.assemble_artifact import collect_output
from feature_pipeline.compute.plan import plan_run
from feature_pipeline.orchestration.keys import records_key
from feature_pipeline.orchestration.sensors.inbox import accept_inbox
from feature_pipeline_tests.fixtures.dagster import COUNTS, DATASET, Pipeline
from feature_pipeline_tests.fixtures.stores import Death, FailingStore

STEPS = 60
"""More than a tick makes calls to the store; the test says when it was too few."""


def publish(pipeline: Pipeline, key: str) -> None:
    """What a hook that ran elsewhere leaves: an artifact and an inbox entry."""
    hook = pipeline.hooks["counts"]
    release = log.register_release(
        pipeline.store, hook.hook_release(pipeline.folder), hook.code_files(pipeline.folder)
    )
    plan = plan_run(
        pipeline.store, hook, release, log.read_batch(pipeline.store, DATASET, key), force=True
    )
    output = pipeline.folder / f"out-{key}"
    output.mkdir()
    with (output / "features.jsonl").open("w") as file:
        for record in plan.compute:
            rows = [{"letter": "a", "count": 1}]
            file.write(json.dumps({"id": record.id, "features": rows}) + "\n")
    now = utc_now()
    run = RunInfo(id=plan.hook_run_id(key), runner="test", started_at=now, finished_at=now)
    artifact = collect_output(plan, output, run, None)
    publish_and_enqueue(pipeline.store, artifact, partial(completion_of, artifact, base=plan.base))
    shutil.rmtree(output)


def dying_tick(pipeline: Pipeline, step: int, *, acts_first: bool) -> bool:
    """A tick that dies at a call to the store; whether it got that far."""
    store = FailingStore(pipeline.store, fatal_call=step, acts_first=acts_first)
    try:
        accept_inbox(store, pipeline.archive_uri, pipeline.instance)
    except Death:
        return True
    return False


def events(pipeline: Pipeline, key) -> dict[str, list[str]]:
    """Data versions of every event, by partition."""
    versions: dict[str, list[str]] = {}
    for record in pipeline.instance.fetch_materializations(key, limit=1000).records:
        event = record.asset_materialization
        versions.setdefault(event.partition, []).append(event.tags["dagster/data_version"])
    return versions


@pytest.mark.faults
@pytest.mark.parametrize("acts_first", [False, True])
def test_a_tick_that_dies_at_any_call_is_completed_by_the_next(
    pipeline: Pipeline, acts_first: bool
):
    pipeline.add_hook()
    keys = []
    for step in range(1, STEPS):
        key = f"b{step}"
        keys.append(key)
        pipeline.submit(key, {f"r{step}": "a"})
        died_accepting_batch = dying_tick(pipeline, step, acts_first=acts_first)
        pipeline.tick()
        publish(pipeline, key)
        died_accepting_completion = dying_tick(pipeline, step, acts_first=acts_first)
        for _ in range(2):
            pipeline.tick()
        if not died_accepting_batch and not died_accepting_completion:
            break
    else:
        pytest.fail("a tick makes more calls than were tried")
    assert len(keys) > 5
    assert accept.waiting(pipeline.store) == []
    assert set(pipeline.instance.get_dynamic_partitions(DATASET)) == set(keys)
    records, features = events(pipeline, records_key(DATASET)), events(pipeline, COUNTS)
    for key in keys:
        assert len(log.batch_entries(pipeline.store, DATASET, key)) == 1
        (entry,) = log.read_log(pipeline.store, DATASET, "counts", key)
        assert set(features[key]) == {str(entry.content_digest)}
        assert len(set(records[key])) == 1


@pytest.mark.faults
@pytest.mark.parametrize("stored", ["nothing", "events", "events and partitions"])
def test_a_daemon_that_dies_while_it_stores_a_tick_repeats_it(pipeline: Pipeline, stored: str):
    pipeline.add_hook()
    pipeline.submit("b1", {"r1": "a"})
    tick = accept_inbox(pipeline.store, pipeline.archive_uri, pipeline.instance)
    if "events" in stored:
        for event in tick.events:
            pipeline.instance.report_runless_asset_event(event)
    if "partitions" in stored:
        pipeline.instance.add_dynamic_partitions(DATASET, tick.partitions[DATASET])
    for _ in range(2):
        pipeline.tick()
    assert accept.waiting(pipeline.store) == []
    assert pipeline.instance.get_dynamic_partitions(DATASET) == ["b1"]
    (versions,) = events(pipeline, records_key(DATASET)).values()
    assert len(set(versions)) == 1
