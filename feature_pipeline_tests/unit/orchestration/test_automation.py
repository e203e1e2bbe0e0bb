"""Which sensors evaluate the conditions of a code location."""

import dagster as dg

from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.orchestration.automation import HOOK_ASSETS_PER_SENSOR, automation_sensors
from feature_pipeline.orchestration.keys import features_key, table_key

DAGSTERS_LIMIT = 500


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


def test_one_sensor_evaluates_everything_while_it_may():
    (sensor,) = automation_sensors(hooks(200))
    assert sensor.name == "automation"
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
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
    sensors = automation_sensors(many)
    evaluated = [sensor.asset_selection.resolve(graph) for sensor in sensors]
    assert len({sensor.name for sensor in sensors}) == len(sensors)
    assert all(len(keys) <= HOOK_ASSETS_PER_SENSOR <= DAGSTERS_LIMIT for keys in evaluated)
    assert sum(len(keys) for keys in evaluated) == 1401
    assert set().union(*evaluated) == graph.get_all_asset_keys()
