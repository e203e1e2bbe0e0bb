"""The Job as the cluster gets it: valid, confined, and with what its cluster needs besides."""

import dataclasses
import json
from typing import Any

import kubernetes_validate
import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runner import RunRequest, Workspace
from feature_pipeline.hooks.runners.kubernetes import job as jobs
from feature_pipeline.hooks.runners.kubernetes.config import PodOverrides, merged
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument

IMAGE = f"registry.example.org/hooks/pockets@sha256:{'a' * 64}"
ARCHIVE = "https://s3.example.org/archive/"
SETTINGS = jobs.JobSettings("hooks", f"registry.example.org/support@sha256:{'b' * 64}")


@pytest.fixture
def request_(tmp_path) -> RunRequest:
    document = ReleaseDocument(
        dataset="proteins", hook="pocket_volume", version="1", image=IMAGE, command=("python", "-m")
    )
    limits = Limits(cpu="2", memory="4Gi", timeout="2h", scratch="10Gi")
    return RunRequest("run-1", HookRelease.of(document), limits, Workspace(tmp_path))


def manifest(request: RunRequest, settings: jobs.JobSettings = SETTINGS) -> dict[str, Any]:
    wanted = jobs.identity(request, IMAGE, ARCHIVE)
    return jobs.job_manifest(jobs.job_name(request, wanted), request, settings, IMAGE, wanted)


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_kubernetes_takes_them(request_, version):
    kubernetes_validate.validate(manifest(request_), version, strict=True)
    kubernetes_validate.validate(jobs.secret_manifest("x", "a", "b"), version, strict=True)


def test_names_leave_room_for_what_pods_add(request_):
    name = manifest(request_)["metadata"]["name"]
    assert name.startswith("hook-pocket-volume-")
    assert len(name) <= 52


def test_another_archive_has_other_jobs(request_):
    """Two may share a namespace, and would ask the same of the same records."""
    ours, theirs = (jobs.identity(request_, IMAGE, ARCHIVE + x) for x in ("", "theirs"))
    assert jobs.job_name(request_, ours) != jobs.job_name(request_, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "run-2"},
        {"attempt": 2},
        {"limits": Limits(cpu="2", memory="8Gi", timeout="2h")},
    ],
)
def test_another_question_is_another_job(request_, change):
    other = dataclasses.replace(request_, **change)
    assert manifest(other)["metadata"]["name"] != manifest(request_)["metadata"]["name"]
    assert manifest(request_) == manifest(request_)


def test_every_container_is_confined(request_):
    pod = manifest(request_)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_only_stage_and_publish_are_granted_anything(request_):
    pod = manifest(request_)["spec"]["template"]["spec"]
    stage, hook = pod["initContainers"]
    assert [c["name"] for c in (stage, hook, *pod["containers"])] == ["stage", "hook", "publish"]
    assert "secretKeyRef" not in json.dumps(hook)
    assert "secret" not in json.dumps(pod["volumes"])
    mounted = {m["name"]: m.get("readOnly", False) for m in hook["volumeMounts"]}
    assert {name for name, is_read_only in mounted.items() if not is_read_only} == {
        "work", "out", "run", "tmp",
    }  # fmt: skip


def test_grants_live_as_long_as_the_pod_may(request_):
    seconds = SETTINGS.lifetime_seconds(request_)
    assert seconds > SETTINGS.schedule_seconds + 7200
    assert manifest(request_)["spec"]["template"]["spec"]["activeDeadlineSeconds"] == int(seconds)


def test_code_files_run_where_stage_puts_them(request_):
    code = RecordFile(name="tool", digest=str(Digest.of(b"")), size=0)
    document = request_.release.document.model_copy(update={"code": (code,), "command": ("tool",)})
    request = dataclasses.replace(request_, release=HookRelease.of(document))
    hook = manifest(request)["spec"]["template"]["spec"]["initContainers"][1]
    assert hook["workingDir"] == "/osa/work"
    assert hook["command"][-1] == "./tool"


def test_a_command_with_dollar_signs_is_run_as_it_is_declared(request_):
    """Kubernetes would put the value of a variable in place of $(NAME)."""
    command = ("sh", "-c", "echo $(hostname) $HOME")
    document = request_.release.document.model_copy(update={"command": command})
    request = dataclasses.replace(request_, release=HookRelease.of(document))
    hook = manifest(request)["spec"]["template"]["spec"]["initContainers"][1]
    assert hook["command"][-1] == "echo $$(hostname) $$HOME"


OVERRIDES = {
    "container_config": {"env": [{"name": "THREADS", "value": "2"}]},
    "pod_template_spec_metadata": {"labels": {"team": "structures"}},
    "pod_spec_config": {
        "node_selector": {"node.kubernetes.io/pool_name": "compute"},
        "tolerations": [{"key": "compute", "operator": "Exists", "toleration_seconds": 5}],
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [{"name": "models", "persistent_volume_claim": {"claim_name": "models"}}],
        "service_account_name": "own",
    },
    "job_metadata": {"labels": {"kueue.x-k8s.io/queue-name": "science"}},
    "job_spec_config": {"ttl_seconds_after_finished": 60, "suspend": True},
}


def test_what_a_cluster_needs_besides_in_the_form_of_dagster_k8s(request_):
    settings = dataclasses.replace(SETTINGS, overrides=PodOverrides.parse(OVERRIDES))
    job = manifest(request_, settings)
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"node.kubernetes.io/pool_name": "compute"}
    assert pod["tolerations"][0]["tolerationSeconds"] == 5
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["volumes"][-1]["persistentVolumeClaim"] == {"claimName": "models"}
    assert len(pod["volumes"]) > 5
    assert pod["serviceAccountName"] == "own"
    assert pod["initContainers"][1]["env"][-1] == {"name": "THREADS", "value": "2"}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "science"
    assert job["metadata"]["labels"][jobs.ROLE_LABEL] == "hook"
    assert job["spec"]["template"]["metadata"]["labels"]["team"] == "structures"
    assert (job["spec"]["ttlSecondsAfterFinished"], job["spec"]["suspend"]) == (60, True)


def test_dagster_k8s_takes_the_same_form():
    """Its users find what they know."""
    from dagster_k8s.job import UserDefinedDagsterK8sConfig

    UserDefinedDagsterK8sConfig.from_dict(OVERRIDES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pod_config": {}}, "unknown ['pod_config']"),
        ({"pod_spec_config": {"host_network": True}}, "hostNetwork cannot be set"),
        ({"pod_spec_config": {"containers": []}}, "containers cannot be set"),
        ({"pod_spec_config": {"node_selectr": {}}}, "PodSpec has no field 'node_selectr'"),
        ({"pod_spec_config": {"tolerations": {}}}, "k8s.pod_spec_config.tolerations: a list"),
        ({"pod_spec_config": {"tolerations": [{"ky": 1}]}}, "tolerations[0]: Toleration"),
        ({"container_config": {"security_context": {}}}, "securityContext cannot be set"),
        ({"job_spec_config": {"backoff_limit": 3}}, "backoffLimit cannot be set"),
    ],
)
def test_what_cannot_be_set(config, message):
    with pytest.raises(InvalidInputError) as caught:
        PodOverrides.parse(config)
    assert message in str(caught.value)


def test_merging():
    assert merged({"a": {"b": 1}, "l": [1], "x": 1}, {"a": {"c": 2}, "l": [2], "x": 3}) == {
        "a": {"b": 1, "c": 2}, "l": [1, 2], "x": 3,
    }  # fmt: skip
