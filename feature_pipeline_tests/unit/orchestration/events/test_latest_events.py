"""Which events of partitions are read, and how often: the last one tells histories apart."""

from collections.abc import Iterator

import dagster as dg
import pytest

from feature_pipeline.orchestration.events.latest_events import events_after, latest_events
from feature_pipeline.orchestration.keys import features_key

KEY = features_key("letters", "size")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def reads(instance, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the events that were read, but for whether the last one is still there."""
    numbers: list[int] = []
    original = instance.fetch_materializations

    def fetch_materializations(records_filter, *args, **kwargs):
        if list(records_filter.storage_ids) != [max(numbers, default=None)]:
            numbers.extend(records_filter.storage_ids)
        return original(records_filter, *args, **kwargs)

    monkeypatch.setattr(instance, "fetch_materializations", fetch_materializations)
    return numbers


def report(instance: dg.DagsterInstance, partition: str, version: str) -> float:
    tags = {"dagster/data_version": version}
    instance.report_runless_asset_event(
        dg.AssetMaterialization(KEY, partition=partition, tags=tags)
    )
    return latest_events(instance, KEY, [partition])[partition].timestamp


def test_an_event_is_read_once(instance, reads: list[int]):
    report(instance, "b1", "1")
    report(instance, "b2", "1")
    assert len(reads) == 2
    for _ in range(3):
        events = latest_events(instance, KEY, ["b1", "b2", "b3"])
        assert {name: event.data_version for name, event in events.items()} == {
            "b1": "1",
            "b2": "1",
        }
    assert len(reads) == 2
    report(instance, "b1", "2")
    assert latest_events(instance, KEY, ["b1"])["b1"].data_version == "2"
    assert len(reads) == 3


def test_events_of_two_databases_are_not_confused():
    """They have the same numbers, as those of a database that was lost and made again."""
    for version in ("1", "2"):
        with dg.DagsterInstance.ephemeral() as instance:
            report(instance, "b1", version)
            assert latest_events(instance, KEY, ["b1"])["b1"].data_version == version
            assert events_after(instance, KEY, 0.0, 10)["b1"].data_version == version


def test_partitions_updated_after_a_time(instance, reads: list[int]):
    times = [report(instance, name, "1") for name in ("b1", "b2", "b3")]
    assert set(events_after(instance, KEY, times[0] - 1, 10)) == {"b1", "b2", "b3"}
    assert set(events_after(instance, KEY, times[0], 10)) == {"b2", "b3"}
    assert set(events_after(instance, KEY, times[1], 10)) == {"b3"}
    assert set(events_after(instance, KEY, times[2], 10)) == set()
    report(instance, "b1", "2")
    report(instance, "b4", "1")
    assert set(events_after(instance, KEY, times[2], 10)) == {"b1", "b4"}
    assert len(reads) == 5


def test_the_partitions_updated_last_are_returned_if_there_are_too_many(instance):
    first = min(report(instance, f"b{number}", "1") for number in range(6))
    assert set(events_after(instance, KEY, first - 1, 2)) == {"b4", "b5"}
    report(instance, "b0", "2")
    assert set(events_after(instance, KEY, first - 1, 2)) == {"b0", "b5"}
