"""Dagster goes while a hook's Job runs: the Job is not started twice, and its result counts."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
import yaml

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.compute import execute
from feature_pipeline.compute import in_flight as expected
from feature_pipeline.compute.recover_results import NotPublished, recover_results
from feature_pipeline.hooks.parts import PartLimits
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.kubernetes.runner import KubernetesRunner
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.resources import HookRunnerResource
from feature_pipeline_tests.contract.hook_runner import Monitor
from feature_pipeline_tests.contract.test_kubernetes_runner import SETTINGS, KubernetesTests
from feature_pipeline_tests.fixtures.dagster import DATASET, Pipeline, dagster_instance
from feature_pipeline_tests.fixtures.kubernetes import HOOK_IMAGE, Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.container, pytest.mark.s3, pytest.mark.dagster]

SLOW = """
import json, os, sys, time
print("begun", flush=True)
time.sleep(3)
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

    def __init__(self, runner: KubernetesRunner) -> None:
        self._runner = runner
        self.image_of = runner.image_of

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
        # a record that fails alone is the run's failure; two would be divided
        pipeline.submit("b1", {"r1": ""} if status else {"r1": "", "r2": ""})
        pipeline.tick()

    def die(self, pipeline: Pipeline, runner: KubernetesRunner) -> None:
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
        name = job["metadata"]["name"]
        self.wait_for(lambda: cluster.get("jobs", name)["status"].get("conditions"))
        cluster.delete("jobs", name)
        self.finish(pipeline, runner)
        assert cluster.jobs_created() == 1

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    def start_and_kill(
        self, pipeline: Pipeline, runner: KubernetesRunner, begun: Callable[[], object]
    ) -> None:
        """A worker process with clients of its own, ended by SIGKILL once `begun` says so."""

        def worker() -> None:
            self.starts.append(runner)
            url = (pipeline.folder / "home" / "dagster.yaml").read_text()
            url = yaml.safe_load(url)["storage"]["postgres"]["postgres_url"]
            url = url.replace("postgresql+psycopg2", "postgresql")
            try:
                with dagster_instance(pipeline.folder / "worker", url) as instance:
                    replace(pipeline, instance=instance).run(KEY, "b1")
            finally:
                os._exit(1)

        process = multiprocessing.get_context("fork").Process(target=worker)
        process.start()
        try:
            self.wait_for(lambda: begun() or process.exitcode is not None)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL

    def test_the_sensor_accepts_what_ended_while_dagster_was_down(
        self, pipeline, runner, cluster: Cluster, monkeypatch
    ):
        """SIGKILL, two Jobs of one run, no process of Dagster until both are gone."""
        monkeypatch.setattr(execute, "PartLimits", lambda: PartLimits(records=1))
        self.submitted(pipeline)

        def ended() -> list[Any]:
            jobs = cluster.all("jobs")
            return [job for job in jobs if job["status"].get("conditions")]

        # Without its Secret, made after it, a Job waits for the next worker.
        self.start_and_kill(pipeline, runner, lambda: len(cluster.all("secrets")) == 2)
        assert len(cluster.all("jobs")) == 2
        [run] = pipeline.instance.get_runs()
        assert not run.is_finished
        self.wait_for(lambda: len(ended()) == 2)
        for job in ended():
            cluster.delete("jobs", job["metadata"]["name"])

        def expected() -> list[str]:
            return [info.key for info in pipeline.store.list_objects(layout.IN_FLIGHT)]

        assert (pipeline.tick().accepted, len(expected())) == (0, 1)  # a worker may yet take them
        pipeline.instance.report_run_failed(run)  # as run monitoring does
        tick = pipeline.tick()
        assert (tick.accepted, [e.asset_key for e in tick.events]) == (1, [KEY])
        [entry] = log.read_log(pipeline.store, DATASET, "slow", "b1")
        assert (entry.verdict, entry.dagster_run_id) == (Verdict.CURRENT, run.run_id)
        manifest = read.read_manifest(pipeline.store, entry.manifest)
        assert (manifest.run.runner, manifest.run.attempts) == ("kubernetes", 2)
        assert manifest.counts.passed == 2
        assert "begun" in read.read_log_text(pipeline.store, manifest)

        pipeline.tick()
        assert accept.waiting(pipeline.store) == []
        self.finish(pipeline, runner)
        assert cluster.jobs_created() == 2
        assert len(log.read_log(pipeline.store, DATASET, "slow", "b1")) == 1
        pipeline.tick()
        assert expected() == []
        assert list(pipeline.store.list_objects(layout.UPLOADS)) == []

    def test_the_sensor_accepts_a_failure_and_leaves_another_attempt_to_a_run(
        self, pipeline, runner, cluster: Cluster
    ):
        self.submitted(pipeline, status=3)
        self.die(pipeline, runner)
        assert pipeline.tick().accepted == 0
        self.wait_for(lambda: cluster.all("jobs")[0]["status"].get("conditions"))
        [key] = expected.list_in_flight(pipeline.store)
        run = expected.read_in_flight(pipeline.store, [key])[key]
        assert isinstance(run, expected.InFlightRun)
        release = {**run.definition["release"], "retries": 1}
        again = run.model_copy(update={"definition": {**run.definition, "release": release}})
        assert isinstance(recover_results(pipeline.store, again), NotPublished)
        assert pipeline.tick().accepted == 1
        [entry] = log.read_log(pipeline.store, DATASET, "slow", "b1")
        assert entry.verdict is Verdict.FAILED
        pipeline.tick()
        assert expected.list_in_flight(pipeline.store) == []
        assert list(pipeline.store.list_objects(layout.UPLOADS)) == []

    def test_an_unreadable_result_is_a_failure_and_delays_nothing_else(
        self, pipeline, runner, cluster: Cluster
    ):
        self.submitted(pipeline)
        self.die(pipeline, runner)
        self.wait_for(lambda: cluster.all("jobs")[0]["status"].get("conditions"))
        job = cluster.all("jobs")[0]["metadata"]
        run_id = job["annotations"]["feature-pipeline/run"]
        key = layout.upload(run_id, job["name"], "result.json")
        assert pipeline.store.replace(key, b"{", pipeline.store.stat(key).etag)
        assert pipeline.tick().accepted == 1
        [entry] = log.read_log(pipeline.store, DATASET, "slow", "b1")
        failure = read.read_manifest(pipeline.store, entry.manifest).failure
        assert (entry.verdict, failure.kind) == (Verdict.FAILED, "publish_failed")
        assert key in failure.reason

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
