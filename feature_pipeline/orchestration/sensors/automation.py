"""The sensors that evaluate automation conditions of features and tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from feature_pipeline.model.definition import HookDefinition, Materialize
from feature_pipeline.orchestration.conditions import TABLES_PRIORITY, condition_of
from feature_pipeline.orchestration.dagster_internals import PRIORITY_TAG
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.sensors.inbox_ticks import TICK_SECONDS, InboxTicks

FEATURES_SENSOR = "compute_features"
TABLES_SENSOR = "load_tables"
_COMPUTES = (
    "Runs hooks for batches that have no features yet, and again when their input features change:"
    " hooks with `compute: automatically`, and assets of your own that have a condition."
)
_LOADS = "Loads batches into the tables that are always kept, when their features have changed."
HOOK_ASSETS_PER_SENSOR = 450
"""Dagster refuses more than 500 in one sensor; some are left for other assets."""


class AfterInboxSensor(dg.AutomationConditionSensorDefinition):
    """A sensor that evaluates conditions after the inbox's tick of the same round."""

    def __init__(self, name: str, ticks: InboxTicks, **options: Any) -> None:
        super().__init__(name, **options)
        self._ticks = ticks

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> Any:
        """Evaluate the conditions once Dagster has stored what the inbox's sensor reported."""
        self._ticks.wait(context.instance)
        return super().evaluate_tick(context)


def automation_sensors(
    hooks: Sequence[HookDefinition], ticks: InboxTicks
) -> list[AfterInboxSensor]:
    """Return sensors that evaluate every condition in each round; running by default.

    Tables have one of their own, whose runs are taken from the queue first. Hooks with more assets
    than a sensor may have get several.
    """
    tables = sorted(
        table_key(hook.dataset, hook.table_name)
        for hook in hooks
        if hook.has_table and hook.table.materialize is Materialize.ALWAYS
    )
    features = sorted(
        features_key(hook.dataset, hook.name)
        for hook in hooks
        if condition_of(hook.compute) is not None
    )
    chunks = list(_chunks(features)) if len(features) > HOOK_ASSETS_PER_SENSOR else []
    apart = [*tables, *(key for chunk in chunks for key in chunk)]
    rest = dg.AssetSelection.all()
    selected = rest - dg.AssetSelection.assets(*apart) if apart else rest
    sensors = [_sensor(FEATURES_SENSOR, ticks, selected, _COMPUTES)]
    for number, chunk in enumerate(chunks, 1):
        name = f"{FEATURES_SENSOR}_{number}"
        sensors.append(_sensor(name, ticks, dg.AssetSelection.assets(*chunk), _COMPUTES))
    for number, chunk in enumerate(_chunks(tables)):
        name = f"{TABLES_SENSOR}_{number}" if number else TABLES_SENSOR
        target, tags = dg.AssetSelection.assets(*chunk), {PRIORITY_TAG: TABLES_PRIORITY}
        sensors.append(_sensor(name, ticks, target, _LOADS, tags))
    return sensors


def _chunks(keys: Sequence[dg.AssetKey]) -> Iterator[Sequence[dg.AssetKey]]:
    for start in range(0, len(keys), HOOK_ASSETS_PER_SENSOR):
        yield keys[start : start + HOOK_ASSETS_PER_SENSOR]


def _sensor(
    name: str,
    ticks: InboxTicks,
    target: dg.AssetSelection,
    description: str,
    run_tags: Mapping[str, str] | None = None,
) -> AfterInboxSensor:
    return AfterInboxSensor(
        name,
        ticks,
        target=target,
        description=description,
        run_tags=run_tags,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=TICK_SECONDS,
        # The daemon knows no conditions but Dagster's own.
        use_user_code_server=True,
    )
