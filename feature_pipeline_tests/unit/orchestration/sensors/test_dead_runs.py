"""Runs whose worker on this machine is gone, also before they began."""

import os
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from feature_pipeline.orchestration.sensors.dead_runs import fail_dead_runs


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_whose_worker_died_is_failed_and_no_other(status: dg.DagsterRunStatus) -> None:
    """Dagster gives a start ten minutes, whether or not its process is there."""

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with dg.instance_for_test() as instance:
        runs = {}
        for pid in (ended.pid, os.getpid(), None):
            run = instance.create_run_for_job(job, status=status)
            runs[pid] = run.run_id
            if pid is not None:
                data = EngineEventData.in_process(pid)
                instance.report_engine_event("Started process for run", run, data)
        assert fail_dead_runs(instance) == [runs[ended.pid]]
        dead = instance.get_run_by_id(runs[ended.pid])
    assert dead is not None
    assert dead.status is dg.DagsterRunStatus.FAILURE
