"""Which sensors evaluate the conditions of a code location, and when."""

import threading
from collections.abc import Iterator

import dagster as dg
import pytest

from feature_pipeline.definitions import shared_definitions
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.sensors import inbox_ticks
from feature_pipeline.orchestration.sensors.automation import (
    HOOK_ASSETS_PER_SENSOR,
    AfterInboxSensor,
    automation_sensors,
)
from feature_pipeline.orchestration.sensors.inbox_ticks import InboxTicks

DAGSTERS_LIMIT = 500
PARTITION = "first"
EVENT = dg.AssetMaterialization(
    features_key("letters", "hook"), partition=PARTITION, tags={"dagster/data_version": "1"}
)


def hooks(count: int) -> list[HookDefinition]:
    return [
        HookDefinition.model_validate(
            {
                "name": f"hook_{number}",
                "dataset": "letters",
                "release": {"version": "1", "command": ["a"], "code": ["a"]},
                "feature": {"columns": [{"name": "letter", "type": "string"}]},
            }
        )
        for number in range(count)
    ]


def test_tables_are_evaluated_apart_and_their_runs_go_first():
    """A table's run is short; ten thousand batches may be queued before it."""
    few = hooks(200)
    everything, tables = automation_sensors(few, InboxTicks())
    assert [everything.name, tables.name] == ["compute_features", "load_tables"]
    assert everything.default_status is tables.default_status is dg.DefaultSensorStatus.RUNNING
    assert everything.run_tags == {}
    assert tables.run_tags == {"dagster/priority": "10"}
    keys = {table_key("letters", hook.name) for hook in few}
    assert tables.asset_selection == dg.AssetSelection.assets(*sorted(keys))


def test_without_tables_there_is_one_sensor():
    (sensor,) = automation_sensors([], InboxTicks())
    assert sensor.asset_selection == dg.AssetSelection.all()


def test_many_hooks_are_shared_out_and_none_is_left_out_or_evaluated_twice():
    many = hooks(700)

    @dg.asset
    def somebody_elses() -> None: ...

    specs = [
        dg.AssetSpec(key)
        for hook in many
        for key in (features_key("letters", hook.name), table_key("letters", hook.name))
    ]
    graph = dg.Definitions(assets=[somebody_elses, *specs]).resolve_asset_graph()
    sensors = automation_sensors(many, InboxTicks())
    evaluated = [sensor.asset_selection.resolve(graph) for sensor in sensors]
    assert len({sensor.name for sensor in sensors}) == len(sensors)
    assert all(len(keys) <= HOOK_ASSETS_PER_SENSOR <= DAGSTERS_LIMIT for keys in evaluated)
    assert sum(len(keys) for keys in evaluated) == 1401
    assert set().union(*evaluated) == graph.get_all_asset_keys()


def test_the_code_locations_conditions_are_evaluated_after_its_inbox():
    sensors = shared_definitions(hooks(1)).sensors or ()
    assert sum(isinstance(sensor, AfterInboxSensor) for sensor in sensors) == 2
    intervals = {sensor.name: sensor.minimum_interval_seconds for sensor in sensors}
    for name in ("inbox", "compute_features", "load_tables"):
        assert intervals[name] < inbox_ticks.ROUND_SECONDS, "every second round is left out"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_nothing_is_waited_for_without_an_inbox_in_this_process(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inbox_ticks, "_BEGINS_WITHIN", 3600.0)
    InboxTicks().wait(instance)


def test_conditions_are_evaluated_once_the_inboxs_tick_is_over(instance: dg.DagsterInstance):
    ticks, waiting, is_over = InboxTicks(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def evaluate() -> None:
        waiting.set()
        ticks.wait(instance)
        seen.append(is_over.is_set())

    conditions = threading.Thread(target=evaluate)
    with ticks.tick():
        conditions.start()
        assert waiting.wait(60)
        is_over.set()
    conditions.join(60)
    assert seen == [True]


@pytest.mark.parametrize("kind", ["event", "partition", "both"])
def test_conditions_are_evaluated_once_dagster_has_stored_what_the_inbox_reported(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """The daemon stores events, then partitions, after the inbox's tick has ended."""
    ticks = InboxTicks()
    older = EVENT._replace(tags={"dagster/data_version": "0"})
    instance.report_runless_asset_event(older)
    to_store = []
    if kind != "partition":
        to_store.append(lambda: instance.report_runless_asset_event(EVENT))
    if kind != "event":
        to_store.append(lambda: instance.add_dynamic_partitions("letters", [PARTITION]))
    with ticks.tick():
        ticks.reports(
            [] if kind == "partition" else [EVENT],
            {} if kind == "event" else {"letters": [PARTITION]},
        )
    monkeypatch.setattr(inbox_ticks, "_STORED_WITHIN", 3600.0)
    monkeypatch.setattr(inbox_ticks.time, "sleep", lambda _: to_store.pop(0)())
    ticks.wait(instance)
    assert not to_store


def test_a_result_that_is_never_stored_is_not_waited_for_without_end(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    ticks = InboxTicks()
    with ticks.tick():
        ticks.reports([EVENT], {})
    monkeypatch.setattr(inbox_ticks, "_STORED_WITHIN", 0.0)
    ticks.wait(instance)
    with ticks.tick():
        monkeypatch.setattr(inbox_ticks, "_ENDS_WITHIN", 0.0)
        ticks.wait(instance)
