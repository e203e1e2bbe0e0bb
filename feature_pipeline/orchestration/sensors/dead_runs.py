"""Fail runs whose worker process died, so that they do not block automation for ever.

Dagster's own run monitoring asks the run launcher for the worker's health, and the default launcher
has no answer.
"""

import dagster as dg
import psutil

from feature_pipeline.model.text.counted import counted

TICK_SECONDS = 60
SAME_START_SECONDS = 1.0
IN_PROGRESS = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail every run whose local worker is gone, also before its first step; return their ids.

    Does nothing under a launcher that starts workers elsewhere. A run whose worker reported nothing
    is left to Dagster's run monitoring, which knows how long a start may take.
    """
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return []
    failed = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=IN_PROGRESS)):
        run_id = record.dagster_run.run_id
        worker = _worker(instance, run_id)
        if worker is None or _is_alive(*worker):
            continue
        # Its last event may have been stored since the runs were listed.
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            continue
        instance.report_run_failed(
            run, f"its worker process {worker[0]} exited unexpectedly; run it again to continue"
        )
        failed.append(run_id)
    return failed


def _worker(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Return the pid that the run's worker reported last, and when."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, ascending=False
    ).records
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        pid = event.engine_event_data.metadata.get("pid")
        if isinstance(pid, dg.TextMetadataValue | dg.IntMetadataValue):
            return int(pid.value or 0), record.timestamp
    return None


def _is_alive(pid: int, reported_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A process that began after the report has only inherited the number.
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.create_time() <= reported_at + SAME_START_SECONDS
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def dead_runs_sensor() -> dg.SensorDefinition:
    """Return the sensor that fails runs whose local worker is gone; running by default."""

    @dg.sensor(
        name="fail_dead_runs",
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Fails runs whose worker process on this machine is gone, so that Dagster retries them."
        ),
    )
    def fail_dead(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        failed = fail_dead_runs(context.instance)
        for run_id in failed:
            context.log.error("run %s: its worker is gone; failed", run_id)
        return dg.SkipReason(f"{counted(len(failed), 'run')} failed")

    return fail_dead
