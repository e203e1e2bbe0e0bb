"""Runs, sensors and checks as Dagster's storage has them, as samples."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

import dagster as dg

from feature_pipeline.model.instruments import (
    CHECKS_FAILING,
    DAGSTER_RUNS,
    DAGSTER_RUNS_FAILED,
    SENSOR_TICK_AGE,
    SENSOR_TICK_DURATION,
    SENSOR_TICK_FAILURES,
)
from feature_pipeline.observability.samples import Sample, sample
from feature_pipeline.orchestration.dagster_internals import (
    AssetCheckExecutionRecordStatus,
    InstigatorType,
    TickStatus,
)

_UNFINISHED: Final = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_TICKS_OVER: Final = timedelta(minutes=10)
_FAILED_OVER: Final = timedelta(hours=1)


def run_samples(instance: dg.DagsterInstance, now: datetime) -> list[Sample]:
    """Return the number of unfinished runs, by status, and of those that failed recently."""
    counts = {
        status: instance.get_runs_count(dg.RunsFilter(statuses=[status])) for status in _UNFINISHED
    }
    failed = instance.get_runs_count(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - _FAILED_OVER)
    )
    return [
        *(
            sample(DAGSTER_RUNS, count, status=status.value.lower())
            for status, count in counts.items()
        ),
        sample(DAGSTER_RUNS_FAILED, failed),
    ]


def sensor_samples(instance: dg.DagsterInstance, now: datetime) -> list[Sample]:
    """Return each sensor's ticks of the last minutes; leave out sensors that never ticked."""
    since = (now - _TICKS_OVER).timestamp()
    samples: list[Sample] = []
    for state in instance.all_instigator_state():
        if state.instigator_type is not InstigatorType.SENSOR or not state.is_running:
            continue
        origin, selector, name = state.instigator_origin_id, state.selector_id, state.name
        last = instance.get_ticks(origin, selector, limit=1)
        if not last:
            continue
        age = max(now.timestamp() - last[0].timestamp, 0.0)
        samples.append(sample(SENSOR_TICK_AGE, age, sensor=name))
        ticks = instance.get_ticks(origin, selector, after=since)
        lasted = [tick.end_timestamp - tick.timestamp for tick in ticks if tick.end_timestamp]
        failed = sum(tick.status is TickStatus.FAILURE for tick in ticks)
        samples.append(sample(SENSOR_TICK_FAILURES, failed, sensor=name))
        if lasted:
            samples.append(sample(SENSOR_TICK_DURATION, max(lasted), sensor=name))
    return samples


def check_samples(instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]) -> list[Sample]:
    """Return whether each check's last evaluation failed; leave out checks without one."""
    samples = []
    keys = list(checks)
    records = instance.event_log_storage.get_asset_check_summary_records(keys)
    for key in keys:
        last = records[key].last_completed_check_execution_record if key in records else None
        if last is None:
            continue
        failing = last.status is AssetCheckExecutionRecordStatus.FAILED
        dataset, *rest = key.asset_key.path
        samples.append(
            sample(
                CHECKS_FAILING,
                float(failing),
                dataset=dataset,
                asset="/".join(rest),
                check=key.name,
            )
        )
    return samples
