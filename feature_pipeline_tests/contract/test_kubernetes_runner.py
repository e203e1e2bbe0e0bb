"""The Kubernetes runner: the common suite against a double that runs pods, and every failure."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.archive.store.s3_sign import S3Signer
from feature_pipeline.compute.pod_transfer import S3Transfer
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.kubernetes import job as jobs
from feature_pipeline.hooks.runners.kubernetes.api import Cluster as Api
from feature_pipeline.hooks.runners.kubernetes.config import PodOverrides
from feature_pipeline.hooks.runners.kubernetes.results import PublishedResults
from feature_pipeline.hooks.runners.kubernetes.runner import KubernetesRunner
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import AttemptKey
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.model.release import HookRelease
from feature_pipeline_tests.contract.hook_runner import (
    HANG,
    HookRunnerTests,
    Monitor,
    Run,
    RunnerFixtures,
)
from feature_pipeline_tests.contract.hostile_hooks import HostileHookTests
from feature_pipeline_tests.fixtures.kubernetes import (
    HOOK_IMAGE,
    NAMESPACE,
    SUPPORT_IMAGE,
    Cluster,
    Fault,
    RealCluster,
)
from feature_pipeline_tests.fixtures.stores import archive_client

pytestmark = [pytest.mark.kubernetes, pytest.mark.container, pytest.mark.s3]

SETTINGS = jobs.JobSettings(namespace=NAMESPACE, support_image=SUPPORT_IMAGE, grace_seconds=1)


SUSPENDED = PodOverrides(job_spec_config={"suspend": True})


class ShiftedClock:
    """The runner's clock, which tests put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_seconds = 0.0
        monkeypatch.setattr("feature_pipeline.hooks.runners.kubernetes.runner.time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class KubernetesTests(RunnerFixtures):
    image = HOOK_IMAGE

    @pytest.fixture
    def transfer(self, s3_address: S3Address, s3_prefix: str) -> S3Transfer:
        client = archive_client(s3_address)
        store = S3Store(client, s3_address.bucket, s3_prefix)
        self.archive = store.identity
        return S3Transfer(store, S3Signer(client, s3_address.bucket, s3_prefix))

    @pytest.fixture
    def make_runner(
        self, transfer: S3Transfer, cluster_url: str
    ) -> Callable[..., KubernetesRunner]:
        def make(settings: jobs.JobSettings = SETTINGS, **options: Any) -> KubernetesRunner:
            from kubernetes import client

            def connect() -> Any:
                configuration = client.Configuration(host=cluster_url)
                configuration.retries = False
                return client.ApiClient(configuration)

            chosen: dict[str, Any] = {"connect": connect, "poll_seconds": 0.1}
            chosen |= {"patience_seconds": 60} | options
            return KubernetesRunner(transfer, settings, **chosen)

        return make

    @pytest.fixture
    def runner(self, make_runner: Callable[..., KubernetesRunner]) -> KubernetesRunner:
        return make_runner()

    def job_of(self, request: RunRequest) -> str:
        return jobs.job_name(request, jobs.identity(request, self.image, self.archive))

    def wait_for_looks(self, cluster: Cluster, number: int) -> None:
        """Return once the runner has looked at its Job so many times more."""

        def looks() -> int:
            return sum(method == "GET" and "/jobs/" in path for method, path in list(cluster.calls))

        enough, end = looks() + number, time.monotonic() + 60
        while looks() < enough:
            assert time.monotonic() < end, "the runner looks at its Job no more"
            time.sleep(0.02)

    def admit(self, cluster: Cluster, request: RunRequest) -> None:
        """Let a suspended Job start, as a queue does."""
        with cluster.lock:
            job = cluster.objects["jobs", self.job_of(request)]
            job["spec"]["suspend"] = False
            cluster.start_pod(job)


class TestKubernetesRunner(KubernetesTests, HookRunnerTests, HostileHookTests):
    watches_disk = False

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def test_an_error_of_the_monitor_stops_the_hook_and_passes_through(
        self, run: Run, workspace: Workspace
    ):
        """An interrupt alone is a drained worker: its Job is left to be attached to."""

        class Broken(Monitor):
            def log(self, line: str) -> None:
                raise KeyboardInterrupt(line)

        with pytest.raises(KeyboardInterrupt, match="go"):
            run("print('go', flush=True)\n" + HANG, Broken())
        [job] = self.cluster.all("jobs")
        assert not job["status"].get("conditions")


class TestRealCluster(KubernetesTests, HookRunnerTests):
    """The common suite on a cluster; skipped without `--kube-context`."""

    watches_disk = False

    @pytest.fixture(autouse=True)
    def _images(self, real_cluster: RealCluster) -> None:
        self.image = real_cluster.hook_image

    @pytest.fixture
    def make_runner(
        self, transfer: S3Transfer, real_cluster: RealCluster
    ) -> Callable[..., KubernetesRunner]:
        settings = jobs.JobSettings(
            namespace=real_cluster.namespace,
            support_image=real_cluster.support_image,
            grace_seconds=1,
        )
        return lambda: KubernetesRunner(
            transfer, settings, connect=real_cluster.connect, poll_seconds=0.5
        )


def test_a_context_of_kubectl_leads_to_its_cluster(cluster_url: str, tmp_path: Path) -> None:
    names = {"double": cluster_url, "other": "http://127.0.0.1:1"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "other",
        "clusters": [{"name": n, "cluster": {"server": url}} for n, url in names.items()],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": n, "context": {"cluster": n, "user": "me"}} for n in names],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    connect = RealCluster("double", NAMESPACE, "", "", tmp_path / "config").connect
    assert Api(NAMESPACE, connect, patience_seconds=5).job("none") is None


OK = "import os\nprint('fine')\nopen(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write('{}')\n"


class TestFailures(KubernetesTests):
    def failed(self, result: RunResult, kind: FailureKind, *words: str) -> None:
        assert result.failure is not None
        assert (result.failure.kind, words) == (kind, words), result.failure
        for word in words:
            assert word in result.failure.reason

    def test_an_image_that_cannot_be_pulled(self, runner, workspace, cluster):
        cluster.missing_images.add(HOOK_IMAGE)
        result = runner.run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.IMAGE_PULL, "hook: ImagePullBackOff", HOOK_IMAGE)
        assert cluster.all("jobs") == []

    def test_no_node_has_room(self, make_runner, workspace, cluster):
        cluster.is_full = True
        settings = dataclasses.replace(SETTINGS, schedule_seconds=0.5)
        result = make_runner(settings).run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.UNSCHEDULABLE, "Insufficient memory")
        assert cluster.all("jobs") == []
        assert cluster.all("secrets") == []

    def test_a_job_suspended_by_a_queue_is_waited_for(
        self, make_runner, workspace, cluster, monkeypatch
    ):
        """For longer than a pod may wait, since a queue is another matter."""
        clock = ShiftedClock(monkeypatch)
        settings = dataclasses.replace(SETTINGS, overrides=SUSPENDED)
        request = self.request_of(workspace, OK)

        def admit() -> None:
            self.wait_for_looks(cluster, 3)
            clock.ahead_seconds = 2 * settings.schedule_seconds
            self.wait_for_looks(cluster, 3)
            self.admit(cluster, request)

        with ThreadPoolExecutor(1) as pool:
            admitted = pool.submit(admit)
            assert make_runner(settings).run(request, Monitor()).failure is None
            admitted.result()

    def test_no_pod_is_made(self, make_runner, workspace, cluster):
        """Over quota, which may pass: for as long as a pod may wait."""
        settings = dataclasses.replace(SETTINGS, schedule_seconds=0.5)
        cluster.refused_pods = "exceeded quota: science"
        result = make_runner(settings).run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.CLUSTER_REFUSED, "exceeded quota: science")

    def test_a_job_suspended_for_long_gets_new_grants(
        self, make_runner, workspace, cluster, monkeypatch
    ):
        """Signed addresses work for a limited time, and a queue may take longer."""
        clock = ShiftedClock(monkeypatch)
        settings = dataclasses.replace(SETTINGS, overrides=SUSPENDED)
        request = self.request_of(workspace, OK)

        def admit() -> list[Any]:
            self.wait_for_looks(cluster, 3)
            before = cluster.all("secrets")
            clock.ahead_seconds = 0.6 * settings.lifetime_seconds(request)
            self.wait_for_looks(cluster, 3)
            after = cluster.all("secrets")
            self.admit(cluster, request)
            return [before, after]

        with ThreadPoolExecutor(1) as pool:
            admitted = pool.submit(admit)
            assert make_runner(settings).run(request, Monitor()).failure is None
            [before], [after] = admitted.result()
        assert after["stringData"] != before["stringData"]
        assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
        assert after["metadata"]["ownerReferences"]

    @pytest.mark.parametrize(
        ("since", "message"),
        [("creationTimestamp", "has not ended"), ("deletionTimestamp", "should have been gone")],
    )
    def test_a_pod_that_stays_for_ever(self, make_runner, workspace, cluster, since, message):
        """Its node is gone, and no event reports it."""
        request = self.request_of(workspace, HANG)

        class Lose(Monitor):
            def is_cancelled(self, *, now: bool = False) -> bool:
                for pod in cluster.all("pods"):
                    stored = cluster.objects["pods", pod["metadata"]["name"]]["metadata"]
                    stored[since] = "2026-01-01T00:00:00Z"
                return False

        result = make_runner().run(request, Lose())
        self.failed(result, FailureKind.EVICTED, message)
        assert cluster.all("jobs") == []

    @pytest.mark.parametrize("resource", ["jobs", "secrets", "pods"])
    def test_permissions(self, runner, workspace, cluster, resource):
        method = "GET" if resource == "pods" else "POST"
        cluster.faults.append(Fault(method, f"/{resource}$", 403, times=99))
        result = runner.run(self.request_of(workspace, OK), Monitor())
        self.failed(
            result, FailureKind.CLUSTER_REFUSED, "403", resource.removesuffix("s"), NAMESPACE
        )
        if resource != "pods":
            assert cluster.all("jobs") == cluster.all("secrets") == []

    def test_a_pod_that_admission_refuses_for_good_is_not_waited_for(
        self, runner, workspace, cluster
    ):
        cluster.refused_pods = "no PriorityClass with name urgent was found"
        result = runner.run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.CLUSTER_REFUSED, "no PriorityClass with name urgent")
        assert cluster.all("jobs") == cluster.all("secrets") == []

    def test_a_namespace_that_is_missing(self, make_runner, workspace):
        settings = dataclasses.replace(SETTINGS, namespace="elsewhere")
        result = make_runner(settings).run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.CLUSTER_REFUSED, "403", "elsewhere")

    def test_a_busy_server_is_outlasted(self, make_runner, workspace, cluster):
        for resource, status in (
            ("jobs", 429),
            ("jobs", 0),
            ("pods", 500),
            ("pods$", 503),
            ("log", 500),
        ):
            cluster.faults.append(Fault("GET", f"/{resource}", status, times=2))
        cluster.faults.append(Fault("POST", "/jobs$", 503))
        runner = make_runner(patience_seconds=60)
        assert runner.run(self.request_of(workspace, OK), Monitor()).failure is None

    def test_a_server_that_never_answers(self, make_runner, workspace, cluster):
        cluster.faults.append(Fault("GET", "/jobs", 503, times=999))
        """Nothing is known of the attempt, least of all that another one is due."""
        runner = make_runner(patience_seconds=1)
        with pytest.raises(StoreUnavailableError, match=r"does not answer.*503"):
            runner.run(self.request_of(workspace, OK), Monitor())

    def test_an_archive_that_does_not_answer_for_a_while(
        self, runner, workspace, transfer, cluster, monkeypatch
    ):
        """The Job is over; what it published is waited for, and nothing is computed twice."""
        original = S3Transfer.result
        outages = iter(range(3))

        def result(self, name):
            if cluster.jobs_created() and next(outages, None) is not None:
                raise StoreUnavailableError("503 for a moment")
            return original(self, name)

        monkeypatch.setattr(S3Transfer, "result", result)
        monitor = Monitor()
        assert runner.run(self.request_of(workspace, OK), monitor).failure is None
        assert cluster.jobs_created() == 1
        assert next(outages, None) is None

    def test_an_archive_that_stays_away(
        self, make_runner, workspace, cluster, monkeypatch, tmp_path
    ):
        """The run ends without a verdict, and the next one takes what the pod has left."""
        settings = dataclasses.replace(SETTINGS, store_patience_seconds=0.2)
        original = S3Transfer.result

        def down(self, name):
            if cluster.jobs_created():
                raise StoreUnavailableError("503 for long")
            return original(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(S3Transfer, "result", down)
            with pytest.raises(StoreUnavailableError):
                make_runner(settings).run(self.request_of(workspace, OK), Monitor())
        again = Workspace(tmp_path / "again")
        again.create()
        assert make_runner(settings).run(self.request_of(again, OK), Monitor()).failure is None
        assert cluster.jobs_created() == 1

    def test_a_program_that_could_not_be_started_is_tried_again(self, runner, workspace, cluster):
        """Once the image or the node is repaired, the same question is asked again."""
        request = self.request_of(workspace, OK)
        document = request.release.document.model_copy(update={"command": ("no-such-program",)})
        request = dataclasses.replace(request, release=HookRelease.of(document))
        for _ in range(2):
            result = runner.run(request, Monitor())
            self.failed(result, FailureKind.CANNOT_START, "no-such-program")
            assert cluster.all("jobs") == []
        assert cluster.jobs_created() == 2

    def test_a_rotated_token(self, make_runner, workspace, cluster, cluster_url):
        tokens = iter(["old", "new"])
        cluster.tokens = {"old"}

        def connect() -> Any:
            from kubernetes import client

            configuration = client.Configuration(host=cluster_url)
            configuration.retries = False
            configuration.api_key = {"authorization": f"Bearer {next(tokens)}"}
            return client.ApiClient(configuration)

        class Rotate(Monitor):
            def log(self, line: str) -> None:
                super().log(line)
                cluster.tokens = {"new"}

        source = "import time\nprint('x', flush=True)\ntime.sleep(0.5)\n" + OK
        result = make_runner(connect=connect).run(self.request_of(workspace, source), Rotate())
        assert result.failure is None

    def test_stage_fails(self, runner, workspace, cluster, cluster_url):
        cluster.environment["stage"] = {"FEATURE_PIPELINE_STAGE_URL": f"{cluster_url}/nothing"}
        result = runner.run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.STAGE_FAILED, "status 1", "the list of inputs")
        assert "the list of inputs" in result.failure.log_tail[-1]

    def test_publish_fails(self, runner, workspace, cluster):
        cluster.environment["publish"] = {"FEATURE_PIPELINE_PUBLISH": "{}"}
        result = runner.run(self.request_of(workspace, OK), Monitor())
        self.failed(result, FailureKind.PUBLISH_FAILED, "KeyError")
        assert list(workspace.output.iterdir()) == []

    def take_away_at(self, cluster: Cluster, request: RunRequest, **status: Any) -> Monitor:
        job = self.job_of(request)

        class Taker(Monitor):
            def log(self, line: str) -> None:
                super().log(line)
                if line == "here" and self.lines.count("here") == 1:
                    cluster.environment.clear()
                    cluster.take_away(job, **status)

        return Taker()

    def test_a_replaced_pod_is_followed(self, runner, workspace, cluster):
        source = "import os\nprint('here', flush=True)\n"
        source += "if 'HANG' in os.environ:\n    import time\n    time.sleep(3600)\n" + OK
        cluster.environment["hook"] = {"HANG": "the first pod"}
        request = self.request_of(workspace, source)
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
        }
        monitor = self.take_away_at(cluster, request, conditions=[condition])
        result = runner.run(request, monitor)
        assert result.failure is None
        assert monitor.lines == ["here", "here", "fine"]
        assert cluster.jobs_created() == 1

    def test_an_evicted_pod(self, runner, workspace, cluster):
        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        monitor = self.take_away_at(
            cluster, request, reason="Evicted", message="node was low on memory"
        )
        result = runner.run(request, monitor)
        self.failed(result, FailureKind.EVICTED, "Evicted: node was low on memory")
        assert result.failure.log_tail == ("here",)

    def test_a_pod_that_filled_its_scratch(self, runner, workspace, cluster):
        """In the kubelet's words; the Job controller does not replace such a pod."""
        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        message = 'Usage of EmptyDir volume "out" exceeds the limit "5Gi". '
        monitor = self.take_away_at(cluster, request, reason="Evicted", message=message)
        result = runner.run(request, monitor)
        self.failed(result, FailureKind.OUT_OF_SPACE, "limits.scratch", message.strip())

    def test_a_killed_child_does_not_leave_the_hook_waiting(self, runner, workspace):
        """The kernel kills the child alone; a pool would wait for its answer for ever."""
        source = (
            "import subprocess\n"
            "subprocess.Popen(['python', '-c', 'held = bytearray(300_000_000)']).wait()\n" + HANG
        )
        result = runner.run(self.request_of(workspace, source, memory="100Mi"), Monitor())
        self.failed(result, FailureKind.OUT_OF_MEMORY, "100Mi")

    def test_a_file_that_is_too_large_to_be_handed_over(self, runner, workspace):
        """More than S3 takes in one PUT: it is told before anything of the file is sent."""
        source = (
            "import os\n"
            "with open(os.environ['OSA_OUT'] + '/features.jsonl', 'wb') as file:\n"
            "    file.truncate(6 << 30)\n"
        )
        result = runner.run(self.request_of(workspace, source), Monitor())
        self.failed(
            result, FailureKind.OUTPUT_TOO_LARGE, "features.jsonl (6Gi)", "5Gi", "batch smaller"
        )
        assert list(workspace.output.iterdir()) == []

    @pytest.mark.parametrize(
        ("visible_seconds", "reason"),
        [(0, "its pod was evicted or deleted, and replaced"), (0.5, "its pod was taken away")],
        ids=["unseen", "seen"],
    )
    def test_a_pod_that_is_always_taken_away(
        self, runner, workspace, cluster, visible_seconds, reason
    ):
        cluster.visible_seconds = visible_seconds
        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        job = self.job_of(request)
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByKubelet"}

        class Taker(Monitor):
            def log(self, line: str) -> None:
                cluster.take_away(job, conditions=[condition])

        result = runner.run(request, Taker())
        self.failed(result, FailureKind.EVICTED, reason, "(4 times)")
        assert cluster.all("jobs") == []

    def test_a_deleted_pod(self, runner, workspace, cluster):
        class Deleter(Monitor):
            def log(self, line: str) -> None:
                [pod] = cluster.all("pods")
                cluster.delete("pods", pod["metadata"]["name"])

        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        self.failed(runner.run(request, Deleter()), FailureKind.EVICTED, "its pod is gone")

    def test_a_deleted_job(self, runner, workspace, cluster):
        class Deleter(Monitor):
            def log(self, line: str) -> None:
                cluster.delete("jobs", cluster.all("jobs")[0]["metadata"]["name"])

        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        result = runner.run(request, Deleter())
        self.failed(
            result, FailureKind.EVICTED, "was deleted by another program", self.job_of(request)
        )

    def test_the_pods_own_deadline(self, runner, workspace, cluster):
        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        monitor = self.take_away_at(cluster, request, reason="DeadlineExceeded")
        self.failed(runner.run(request, monitor), FailureKind.DEADLINE)

    def test_the_whole_container_out_of_memory(self, runner, workspace, cluster):
        """As on cgroup v2, where the kernel ends the wrapper as well."""
        request = self.request_of(workspace, "print('here', flush=True)\n" + HANG)
        ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        monitor = self.take_away_at(
            cluster, request, initContainerStatuses=[{"name": "hook", "state": ended}]
        )
        result = runner.run(request, monitor)
        self.failed(result, FailureKind.OUT_OF_MEMORY)
        assert result.failure.exit_code == 137

    def test_a_local_image(self, runner, workspace):
        request = self.request_of(workspace, OK)
        document = request.release.document.model_copy(update={"image": f"sha256:{'0' * 64}"})
        request = dataclasses.replace(request, release=HookRelease.of(document))
        result = runner.run(request, Monitor())
        self.failed(result, FailureKind.CANNOT_START, "registry")

    def test_a_link_in_the_output_is_not_followed(self, runner, workspace):
        source = "import os\nos.symlink('/etc/passwd', os.environ['OSA_OUT'] + '/features.jsonl')\n"
        result = runner.run(self.request_of(workspace, source), Monitor())
        self.failed(result, FailureKind.INVALID_OUTPUT, "features.jsonl")
        assert list(workspace.output.iterdir()) == []


class TestAttaching(KubernetesTests):
    SOURCE = (
        "import time\nprint('begun', flush=True)\ntime.sleep(3)\nprint('done', flush=True)\n" + OK
    )

    @pytest.fixture
    def again(self, tmp_path: Path) -> Workspace:
        workspace = Workspace(tmp_path / "again")
        workspace.create()
        return workspace

    class Dying(Monitor):
        def log(self, line: str) -> None:
            raise KeyboardInterrupt

    def test_a_new_worker_attaches(self, runner, workspace, again, cluster):
        with pytest.raises(KeyboardInterrupt):
            runner.run(self.request_of(workspace, self.SOURCE), self.Dying())
        monitor = Monitor()
        result = runner.run(self.request_of(again, self.SOURCE), monitor)
        assert result.failure is None
        assert cluster.jobs_created() == 1
        assert (again.output / "features.jsonl").read_text() == "{}"
        assert result.log.read_text() == "begun\ndone\nfine\n"
        assert monitor.lines[-3:] == ["begun", "done", "fine"]

    def test_the_job_is_gone_and_its_result_is_not(self, runner, workspace, again, cluster):
        """No worker polled for longer than the cluster keeps Jobs."""
        assert runner.run(self.request_of(workspace, OK), Monitor()).failure is None
        cluster.delete("jobs", cluster.all("jobs")[0]["metadata"]["name"])
        result = runner.run(self.request_of(again, OK), Monitor())
        assert result.failure is None
        assert (again.output / "features.jsonl").read_text() == "{}"
        assert cluster.jobs_created() == 1

    def test_an_attempt_that_ended_without_a_result_is_not_made_again(
        self, runner, workspace, again, cluster, tmp_path
    ):
        """Its Job is gone, too: a worker noted how it ended, and another goes on from there."""
        cluster.environment["publish"] = {"FEATURE_PIPELINE_PUBLISH": "{}"}
        first = runner.run(self.request_of(workspace, OK), Monitor())
        cluster.environment.clear()
        cluster.delete("jobs", cluster.all("jobs")[0]["metadata"]["name"])
        monitor = Monitor()
        second = runner.run(self.request_of(again, OK), monitor)
        assert cluster.jobs_created() == 1
        assert any("ended before, without a result" in line for line in monitor.lines)
        unattended = PublishedResults(runner._transfer, HOOK_IMAGE)
        elsewhere = Workspace(tmp_path / "third")
        elsewhere.create()
        third = unattended.run(self.request_of(elsewhere, OK), Monitor())
        for result in (second, third):
            assert result.failure == first.failure
            assert result.log.read_text().endswith("\n".join(first.failure.log_tail) + "\n")

    def test_a_job_that_is_being_deleted_is_not_attached_to(
        self, runner, workspace, again, cluster
    ):
        request = self.request_of(workspace, OK)
        assert runner.run(request, Monitor()).failure is None
        name = self.job_of(request)
        runner._transfer.forget(AttemptKey(request.run_id, name))
        cluster.objects["jobs", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        threading.Timer(1.0, cluster.delete, ("jobs", name)).start()
        assert runner.run(self.request_of(again, OK), Monitor()).failure is None
        assert cluster.jobs_created() == 2

    def test_an_answer_that_was_lost(self, runner, workspace, cluster):
        """The Job was made, and we were not told."""
        request = self.request_of(workspace, OK)
        cluster.faults.append(Fault("POST", "/jobs$", 0))
        assert runner.run(request, Monitor()).failure is None
        assert len(cluster.all("jobs")) == 1

    def test_another_attempt_is_another_job(self, runner, workspace, cluster):
        request = self.request_of(workspace, OK)
        runner.run(request, Monitor())
        runner.run(dataclasses.replace(request, attempt=2), Monitor())
        assert cluster.jobs_created() == 2

    def test_a_job_of_that_name_that_is_not_ours(self, runner, workspace, cluster):
        request = self.request_of(workspace, OK)
        cluster.create(
            "jobs", {"metadata": {"name": self.job_of(request)}, "spec": {"suspend": True}}
        )
        result = runner.run(request, Monitor())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CLUSTER_REFUSED
        assert "not ours" in result.failure.reason
        assert len(cluster.all("jobs")) == 1

    def test_cancelled_while_interrupted(self, runner, workspace, cluster):
        class Cancelled(Monitor):
            def log(self, line: str) -> None:
                self.cancel.set()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runner.run(self.request_of(workspace, self.SOURCE), Cancelled())
        assert cluster.all("jobs") == []

    def test_a_job_that_cannot_be_deleted_hides_nothing(self, runner, workspace, cluster):
        cluster.faults.append(Fault("DELETE", "/jobs/", 403, times=9))
        monitor = Monitor(cancel_at="begun")
        source = "print('begun', flush=True)\n" + HANG
        result = runner.run(self.request_of(workspace, source), monitor)
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANCELLED
        assert "could not be deleted" in result.log.read_text()


class TestPod(KubernetesTests):
    """What the hook is given, as it finds out itself, and what the manifest says."""

    def test_the_hook_has_no_grant_and_no_token(self, runner, workspace, transfer, cluster):
        source = (
            "import json, os\n"
            "status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines()"
            " if ':\\t' in l)\n"
            "paths = [os.path.join(f, n) for f, _, names in os.walk('/osa') for n in names]\n"
            "token = os.path.exists('/var/run/secrets')\n"
            "can = [p for p in ('/', '/osa/in', '/osa/files', '/osa/bin', '/etc', '/osa/out',"
            " '/tmp') if os.access(p, os.W_OK)]\n"
            "found = [dict(os.environ), os.getuid(), status['CapEff'], paths, token, can]\n"
            "print(json.dumps(found))\n"
        )
        result = runner.run(self.request_of(workspace, source), Monitor())
        assert result.failure is None
        environment, uid, capabilities, paths, token, can = json.loads(result.log.read_text())
        text = json.dumps([environment, paths])
        for secret in ("X-Amz", "Signature", "http", "FEATURE_PIPELINE", "AWS", "TOKEN"):
            assert secret not in text
        assert (uid, int(capabilities, 16), token) == (jobs.NOBODY, 0, False)
        assert can == ["/osa/out", "/tmp"]

    def test_the_grants_are_in_a_secret_that_is_deleted_with_the_job(
        self, runner, workspace, cluster
    ):
        runner.run(self.request_of(workspace, OK), Monitor())
        [job], [secret] = cluster.all("jobs"), cluster.all("secrets")
        assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        assert "X-Amz" not in json.dumps([job, cluster.all("pods")])
        assert "X-Amz-Signature" in json.dumps(secret)
        assert "X-Amz-Expires" in json.dumps(secret)

    @pytest.mark.parametrize("kind", ["link", "pipe"])
    def test_publish_follows_nothing_that_the_hook_put_in_the_wrappers_place(
        self, runner, workspace, kind
    ):
        """It would read what publish is granted, or wait for ever."""
        source = (
            "import os\n"
            "os.remove('/osa/run/log')\n"
            + {
                "link": "os.symlink('/proc/self/environ', '/osa/run/log')\n",
                "pipe": "os.mkfifo('/osa/run/log')\n",
            }[kind]
        )
        result = runner.run(self.request_of(workspace, source), Monitor())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.PUBLISH_FAILED
        assert "log: not a regular file" in result.failure.describe()
        assert "X-Amz" not in result.log.read_text()
