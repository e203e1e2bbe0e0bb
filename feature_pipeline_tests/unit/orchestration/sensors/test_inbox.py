"""What a tick over the inbox looks at, and that no entry costs others theirs."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.accept import is_batch
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.inbox import BATCH_ID, RUN_ID, Submission
from feature_pipeline.archive.store.base import ObjectInfo
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import Source
from feature_pipeline.orchestration.sensors import inbox
from feature_pipeline.orchestration.sensors.inbox import FailedTries, accept_inbox, choose
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    FailingStore,
    Scene,
    make_batch,
)


def waiting(batches: int, completions: int) -> list[ObjectInfo]:
    names = [f"{BATCH_ID}d.b{n:03d}" for n in range(batches)]
    names += [f"{RUN_ID}r{n:03d}" for n in range(completions)]
    return [ObjectInfo(f"inbox/{name}", 1, datetime.now(UTC), "e") for name in names]


@pytest.mark.parametrize(("batches", "completions"), [(0, 0), (3, 7), (10, 0), (0, 10)])
def test_all_that_a_tick_can_take(batches: int, completions: int):
    infos = waiting(batches, completions)
    assert choose(infos, 10, {}) == infos


@pytest.mark.parametrize(
    ("batches", "completions", "taken"),
    [(4, 100, 4), (10, 100, 5), (100, 100, 5), (100, 2, 8), (100, 0, 10)],
)
def test_batches_and_completions_have_shares(batches: int, completions: int, taken: int):
    chosen = choose(waiting(batches, completions), 10, {})
    assert len(chosen) == 10
    assert sum(map(is_batch, chosen)) == taken


def test_both_ends_are_taken():
    infos = waiting(0, 100)
    assert choose(infos, 10, {}) == [*infos[:5], *infos[-5:]]
    assert choose(infos, 3, {}) == [infos[0], *infos[-2:]]


def test_entries_tried_without_success_come_after_new_ones():
    looks, seen = FailedTries(), Counter[str]()
    infos = waiting(0, 40)
    for _ in range(12):
        chosen = choose(infos, 10, looks.of(infos))
        looks.add(chosen, {info.key.removeprefix(layout.INBOX) for info in chosen})
        seen.update(info.key for info in chosen)
    assert set(seen.values()) == {3}
    new = [*infos, *waiting(0, 41)[-1:]]
    assert new[-1] in choose(new, 10, looks.of(new))
    looks.of([])
    assert looks.of(infos) == {}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def leave_stuck_submissions(scene: Scene, count: int) -> None:
    """Batches whose blobs are never stored: they wait for an hour."""
    for n in range(count):
        submission = Submission(
            dataset=DATASET, batch=f"x{n}", digest=Digest.of(b"%d" % n), source=Source.HARVEST
        )
        scene.store.create(layout.inbox(submission.inbox_id), submission.encode())


def test_waiting_batches_do_not_prevent_completions_from_being_processed(scene: Scene, instance):
    batch, release = scene.submit(make_batch()), scene.release()
    leave_stuck_submissions(scene, 30)
    completion = scene.completion(scene.artifact(batch, release))
    publish.enqueue_completion(scene.store, completion)
    tick = accept_inbox(scene.store, "s3://a", instance, limit=10)
    assert tick.accepted == 1
    assert log.head(scene.store, DATASET, HOOK, "b1") is not None


def test_a_new_batch_does_not_wait_behind_those_that_cannot_be_accepted(scene: Scene, instance):
    leave_stuck_submissions(scene, 30)
    looks = FailedTries()
    for _ in range(3):
        accept_inbox(scene.store, "s3://a", instance, limit=10, failed_tries=looks)
    publish.submit_batch(scene.store, make_batch("b1"), {})
    # neither the newest nor the oldest of what waits
    leave_stuck_submissions(scene, 32)
    tick = accept_inbox(scene.store, "s3://a", instance, limit=2, failed_tries=looks)
    tick.add(accept_inbox(scene.store, "s3://a", instance, limit=2, failed_tries=looks))
    assert [entry.batch for entry in log.batch_entries(scene.store, DATASET, "b1")] == ["b1"]


def test_a_tick_ends_when_its_time_is_over(scene: Scene, instance, monkeypatch):
    monkeypatch.setattr(inbox, "ACCEPTING_SECONDS", 0.0)
    monkeypatch.setattr(inbox, "_ENTRIES_AT_ONCE", 2)
    release = scene.release()
    leave_stuck_submissions(scene, 9)
    for key in ("b1", "b2", "b3"):
        batch = scene.submit(make_batch(key))
        publish.enqueue_completion(scene.store, scene.completion(scene.artifact(batch, release)))
    tick = accept_inbox(scene.store, "s3://a", instance)
    # some of each kind, whatever was begun before
    assert (tick.accepted, len(tick.waiting)) == (2, 2 + 2)


def test_reporting_takes_of_a_tick_s_time(scene: Scene, instance, monkeypatch):
    """Dagster gives up a tick that accepts for its whole time and reports after that."""
    monkeypatch.setattr(inbox, "_ENTRIES_AT_ONCE", 2)
    now, original = [0.0], inbox.records_event

    def records_event(accepted, batch):
        now[0] += inbox.ACCEPTING_SECONDS
        return original(accepted, batch)

    monkeypatch.setattr(inbox, "records_event", records_event)
    monkeypatch.setattr(inbox.time, "monotonic", lambda: now[0])
    for key in ("b1", "b2", "b3", "b4"):
        publish.submit_batch(scene.store, make_batch(key), {})
    tick = accept_inbox(scene.store, "s3://a", instance)
    assert (tick.accepted, len(tick.events)) == (2, 2)


def test_a_completion_is_not_processed_before_its_batch(scene: Scene, instance, monkeypatch):
    """It would be quarantined as one whose batch is not known, where the inbox is long."""
    monkeypatch.setattr(accept, "WAIT_LIMIT", accept.WAIT_LIMIT * 0)
    release = scene.release()
    publish.submit_batch(scene.store, make_batch("b2"), {})
    publish.submit_batch(scene.store, make_batch("b1"), {})
    publish.submit_batch(scene.store, make_batch("b3"), {})
    publish.enqueue_completion(
        scene.store, scene.completion(scene.artifact(make_batch("b1"), release))
    )
    tick = accept_inbox(scene.store, "s3://a", instance, limit=2)
    assert tick.quarantined == []
    assert any("its batch waits too" in line for line in tick.waiting)


@pytest.mark.parametrize("run_id", ["a\0b", "\ud800", "x" * 10_000])
def test_what_dagster_cannot_be_asked_costs_itself(scene: Scene, instance, run_id: str):
    batch, release = scene.submit(make_batch()), scene.release()
    odd = scene.completion(scene.artifact(batch, release))
    document = json.loads(odd.encode()) | {"dagster_run_id": run_id}
    scene.store.create(layout.inbox(odd.inbox_id), json.dumps(document).encode())
    good = scene.completion(scene.artifact(batch, release, label="good"))
    publish.enqueue_completion(scene.store, good)
    tick = accept_inbox(scene.store, "s3://a", instance)
    assert (tick.accepted, len(tick.quarantined)) == (1, 1)
    assert log.head(scene.store, DATASET, HOOK, "b1").manifest == good.manifest


def test_an_entry_that_cannot_be_reported_keeps_no_other_from_it(
    scene: Scene, instance, monkeypatch
):
    for key in ("b1", "b2", "b3"):
        publish.submit_batch(scene.store, make_batch(key), {})
    original = inbox.records_event

    def records_event(accepted, batch):
        if accepted.batch == "b2":
            raise OverflowError("date value out of range")
        return original(accepted, batch)

    monkeypatch.setattr(inbox, "records_event", records_event)
    tick = accept_inbox(scene.store, "s3://a", instance)
    assert [event.partition for event in tick.events] == ["b1", "b3"]
    assert tick.partitions == {DATASET: ["b1", "b3"]}
    assert [line.partition(":")[2] for line in tick.damaged] == [
        " OverflowError: date value out of range"
    ]


def test_entries_that_dagster_knows_are_removed_without_listing_each_log(scene: Scene, instance):
    """Each listing is a round trip: with hundreds of entries, one after another took the tick."""
    for n in range(40):
        publish.submit_batch(scene.store, make_batch(f"b{n:02d}"), {})
    for tick in [accept_inbox(scene.store, "s3://a", instance) for _ in range(2)]:
        for event in tick.events:
            instance.report_runless_asset_event(event)
        for dataset, keys in tick.partitions.items():
            instance.add_dynamic_partitions(dataset, keys)
    log.forget_read_entries()
    store = FailingStore(scene.store, only=frozenset({"list_objects"}))
    tick = accept_inbox(store, "s3://a", instance)
    assert (tick.removed, tick.events) == (40, [])
    of_logs = [call for call in store.calls if layout.batch_logs(DATASET) in call]
    # one of each log by acceptance, and one of all of them
    assert len(of_logs) == 40 + 1


def test_a_sensor_s_process_keeps_few_entries_of_logs(scene: Scene, instance, monkeypatch):
    """It runs for months, and looks at an entry in the next ticks or never again."""
    monkeypatch.setattr(inbox, "_ENTRIES_KEPT", 5)
    for n in range(20):
        publish.submit_batch(scene.store, make_batch(f"b{n:02d}"), {})
    for _ in range(2):
        accept_inbox(scene.store, "s3://a", instance)
    store = FailingStore(scene.store, only=frozenset({"get"}))
    assert len(log.batches(store, DATASET)) == 20
    assert len(store.calls) == 20 - 5
