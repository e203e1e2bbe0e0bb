"""The Kubernetes runner against what a real cluster answered, failure by failure."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.kubernetes import failure_facts
from feature_pipeline.hooks.runners.kubernetes import job as jobs
from feature_pipeline.hooks.runners.kubernetes.runner import KubernetesRunner
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import Monitor
from feature_pipeline_tests.fixtures.kubernetes_player import (
    RECORDED,
    SCENARIOS,
    PlayedTransfer,
    Player,
)

pytestmark = pytest.mark.kubernetes

IMAGE = f"registry.test/python@sha256:{'1' * 64}"
SUPPORT = f"registry.test/feature-pipeline@sha256:{'2' * 64}"

# What the runner makes of each, and the longest time in seconds that it may take to do so.
# Where a kind is None the attempt gave a verdict.
EXPECTED: dict[str, tuple[FailureKind | None, str, float]] = {
    "success": (None, "", 12),
    "hook-exits-1": (FailureKind.NON_ZERO_EXIT, "status 1", 10),
    "hook-out-of-memory-137": (FailureKind.OUT_OF_MEMORY, "ran out of memory", 8),
    "hook-out-of-memory-hangs": (FailureKind.OUT_OF_MEMORY, "ran out of memory", 25),
    "evicted-while-hook-runs": (None, "", 25),
    "evicted-while-publish-runs": (None, "", 35),
    "preempted": (None, "", 28),
    "noexecute-taint": (None, "", 30),
    "kubelet-refuses-outofcpu": (FailureKind.UNSCHEDULABLE, "OutOfcpu: Pod was rejected", 5),
    "image-pull-fails-and-recovers": (None, "", 50),
    "image-not-found": (FailureKind.IMAGE_PULL, "not found", 20),
    "invalid-image-name": (FailureKind.IMAGE_PULL, "InvalidImageName", 20),
    "unschedulable": (FailureKind.UNSCHEDULABLE, "Insufficient cpu", 10),
    "quota-jobs": (FailureKind.CLUSTER_REFUSED, "exceeded quota: tight", 2),
    "quota-pods": (FailureKind.CLUSTER_REFUSED, "exceeded quota: tight", 12),
    "limitrange-maximum": (FailureKind.CLUSTER_REFUSED, "maximum memory usage", 5),
    "missing-priorityclass": (FailureKind.CLUSTER_REFUSED, "no PriorityClass with name", 5),
    "missing-service-account": (FailureKind.CLUSTER_REFUSED, "serviceaccount", 5),
    "podsecurity-violation": (FailureKind.CLUSTER_REFUSED, "violates PodSecurity", 5),
    "pod-deadline-exceeded": (FailureKind.DEADLINE, "longer than it may", 16),
    "kubectl-delete-pod": (FailureKind.EVICTED, "", 6),
    "kubectl-delete-job": (FailureKind.EVICTED, "was deleted by another program", 6),
    "ttl-after-finished": (None, "", 12),
    "api-server-killed-and-restarted": (None, "", 50),
    "ephemeral-storage-eviction": (FailureKind.OUT_OF_SPACE, "limits.scratch", 70),
}
SCHEDULE_SECONDS = {
    # Less than the runner of the recording waited before it deleted the Job.
    "unschedulable": 3,
    "quota-pods": 5,
    # More than the window without a pod, less than the Job's age when the next pod comes.
    "evicted-while-hook-runs": 6,
    "noexecute-taint": 6,
}


class Played:
    def __init__(self, player: Player, url: str, folder: Path, scenario: str) -> None:
        self.player = player
        self.monitor = Monitor()
        self.transfer = PlayedTransfer(player, 1 if scenario == "hook-exits-1" else 0)
        document = ReleaseDocument(
            dataset="d", hook="probe", version="1", image=IMAGE, command=("python", "hook.py"),
            code=(), config={},
        )  # fmt: skip
        self.request = RunRequest(
            run_id="probe-1",
            release=HookRelease.of(document),
            limits=Limits(timeout="10m"),
            workspace=Workspace(folder),
        )

        def connect() -> Any:
            from kubernetes import client

            configuration = client.Configuration(host=url)
            configuration.retries = False
            return client.ApiClient(configuration)

        settings = jobs.JobSettings(
            namespace="science",
            support_image=SUPPORT,
            grace_seconds=1,
            schedule_seconds=SCHEDULE_SECONDS.get(scenario, 1800),
        )
        self.runner = KubernetesRunner(self.transfer, settings, connect=connect)

    def run(self) -> RunResult:
        return self.runner.run(self.request, self.monitor)


@pytest.fixture
def played(play: Any, tmp_path: Path) -> Any:
    def start(scenario: str) -> Played:
        player, url = play(scenario)
        return Played(player, url, tmp_path, scenario)

    return start


def test_every_recording_has_an_expectation() -> None:
    assert sorted(EXPECTED) == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_runner_makes_of_a_recording_what_happened(played: Any, scenario: str) -> None:
    run = played(scenario)
    result = run.run()
    kind, words, within = EXPECTED[scenario]
    if kind is None:
        assert result.failure is None, result.failure
    else:
        assert result.failure is not None
        assert result.failure.kind is kind, result.failure
        assert words in result.failure.reason
    assert run.player.at <= within


def test_a_refused_job_leaves_no_secret(played: Any) -> None:
    run = played("quota-jobs")
    run.run()
    assert run.player.secrets == {}


def test_the_secret_belongs_to_the_job(played: Any) -> None:
    run = played("success")
    run.run()
    (secret,) = run.player.secrets.values()
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", "job")


def test_a_pod_that_replaces_another_is_granted_again(played: Any) -> None:
    run = played("evicted-while-hook-runs")
    run.run()
    assert run.transfer.offered == 2


def test_a_warning_of_the_cluster_is_in_the_log(played: Any) -> None:
    run = played("podsecurity-violation")
    run.run()
    assert any("would violate PodSecurity" in line for line in run.monitor.lines)


@pytest.mark.parametrize("scenario", ["hook-out-of-memory-hangs", "image-not-found"])
def test_a_job_that_gets_nowhere_is_deleted(played: Any, scenario: str) -> None:
    run = played(scenario)
    run.run()
    assert ("DELETE", "jobs") in run.player.calls


def test_a_pull_that_failed_may_succeed_while_a_pod_may_wait() -> None:
    """The recorded state lasts for 0.1 s, in which no runner looks; the pull has succeeded then."""
    lines = (RECORDED / "image-pull-fails-and-recovers.jsonl").read_text().splitlines()
    pods = [line["object"] for line in map(json.loads, lines) if line["kind"] == "Pod"]
    [failed] = [pod for pod in pods if _waiting(pod, jobs.HOOK).get("reason") == "ImagePullBackOff"]
    now = failure_facts.moment(failed["metadata"]["creationTimestamp"]) + timedelta(seconds=40)
    assert failure_facts.stuck(failed, 1800, now) is None
    given_up = failure_facts.stuck(failed, 20, now)
    assert given_up is not None
    assert given_up.kind is FailureKind.IMAGE_PULL


def _waiting(pod: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(failure_facts.container_state(pod, name).get("waiting") or {})
