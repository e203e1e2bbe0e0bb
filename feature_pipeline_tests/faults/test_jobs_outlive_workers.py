"""Dagster goes while a hook's Job runs: the Job is not started twice, and its result counts."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from feature_pipeline.archive import log
from feature_pipeline.archive.log import Verdict
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.kubernetes import KubernetesRunner
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.resources import HookRunnerResource
from feature_pipeline_tests.contract.hook_runner import Monitor
from feature_pipeline_tests.contract.test_kubernetes_runner import SETTINGS, KubernetesTests
from feature_pipeline_tests.fixtures.dagster import DATASET, Pipeline
from feature_pipeline_tests.fixtures.kubernetes import HOOK_IMAGE, Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.container, pytest.mark.s3, pytest.mark.dagster]

SLOW = """
import json, os, sys, time
print("begun", flush=True)
time.sleep(1.5)
ids = [json.loads(line)["id"] for line in open(os.environ["OSA_IN"] + "/records.jsonl")]
with open(os.environ["OSA_OUT"] + "/features.jsonl", "w") as out:
    for n, record in enumerate(ids):
        out.write(json.dumps({"id": record, "features": [{"n": n}]}) + "\\n")
if os.path.exists(os.environ["OSA_IN"] + "/config.json"):
    sys.exit(json.load(open(os.environ["OSA_IN"] + "/config.json"))["status"])
"""
KEY = features_key(DATASET, "slow")


class Dying:
    """A worker that goes as soon as its hook says something."""

    name = "kubernetes"

    def __init__(self, runner: HookRunner) -> None:
        self._runner = runner

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        class Interrupted(Monitor):
            def log(self, line: str) -> None:
                raise KeyboardInterrupt

        return self._runner.run(request, Interrupted())


class TestJobsOutliveWorkers(KubernetesTests):
    @pytest.fixture
    def runner(self, make_runner: Callable[..., KubernetesRunner]) -> KubernetesRunner:
        return make_runner(replace(SETTINGS, code_image=HOOK_IMAGE))

    @pytest.fixture(autouse=True)
    def _starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The resource makes its runner from settings, and the cluster's address is in none."""
        self.starts: list[HookRunner] = []
        monkeypatch.setattr(HookRunnerResource, "runner", lambda *_: self.starts[-1])

    def with_runner(self, pipeline: Pipeline, runner: HookRunner) -> Pipeline:
        self.starts.append(runner)
        return pipeline

    def submitted(self, pipeline: Pipeline, status: int = 0) -> None:
        config = {"status": status} if status else {}
        pipeline.add_hook(
            "slow",
            SLOW,
            release={"config": config},
            feature={"columns": [{"name": "n", "type": "integer"}]},
        )
        pipeline.submit("b1", {"r1": "", "r2": ""})
        pipeline.tick()

    def die(self, pipeline: Pipeline, runner: HookRunner) -> None:
        with contextlib.suppress(KeyboardInterrupt, Exception):
            self.with_runner(pipeline, Dying(runner)).run(KEY, "b1")
        assert log.head(pipeline.store, DATASET, "slow", "b1") is None

    def finish(self, pipeline: Pipeline, runner: HookRunner, **options: Any) -> None:
        result = self.with_runner(pipeline, runner).run(KEY, "b1", **options)
        assert result.success
        head = log.head(pipeline.store, DATASET, "slow", "b1")
        assert head is not None
        assert head.verdict is Verdict.CURRENT

    def test_a_new_worker_takes_the_job_over(self, pipeline, runner, cluster: Cluster):
        self.submitted(pipeline)
        self.die(pipeline, runner)
        self.finish(pipeline, runner)
        assert cluster.jobs_created() == 1

    def test_dagster_is_down_until_the_job_is_gone(self, pipeline, runner, cluster: Cluster):
        self.submitted(pipeline)
        self.die(pipeline, runner)
        [job] = cluster.all("jobs")
        name, end = job["metadata"]["name"], time.monotonic() + 60
        while not cluster.get("jobs", name)["status"].get("conditions"):
            assert time.monotonic() < end
            time.sleep(0.05)
        cluster.delete("jobs", name)
        self.finish(pipeline, runner)
        assert cluster.jobs_created() == 1

    def test_force_starts_a_new_one(self, pipeline, runner, cluster: Cluster):
        self.submitted(pipeline)
        self.finish(pipeline, runner)
        self.finish(pipeline, runner, config={"force": True})
        assert cluster.jobs_created() == 2

    def test_a_run_after_a_failed_job_starts_a_new_one(self, pipeline, runner, cluster: Cluster):
        self.submitted(pipeline, status=3)
        for _ in range(2):
            result: dg.ExecuteInProcessResult = self.with_runner(pipeline, runner).run(KEY, "b1")
            assert not result.success
        assert cluster.jobs_created() == 2
        assert len(log.read_log(pipeline.store, DATASET, "slow", "b1")) == 2
