"""Build the Job of one attempt: its name, its pod, the containers' grants. No calls."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from feature_pipeline.hooks.runner import RunRequest
from feature_pipeline.hooks.runners.kubernetes.config import PodOverrides, merged
from feature_pipeline.hooks.runners.shared import log_file
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.release import HookRelease

STAGE: Final = "stage"
HOOK: Final = "hook"
PUBLISH: Final = "publish"
IDENTITY: Final = "feature-pipeline/identity"
RUN: Final = "feature-pipeline/run"
ATTEMPT: Final = "feature-pipeline/attempt"
ROLE_LABEL: Final = "feature-pipeline/role"
HOOK_LABEL: Final = "feature-pipeline/hook"
NOBODY: Final = 65534
PUBLISH_ALLOWANCE_SECONDS: Final = 900.0

_SUPPORT_MEMORY: Final = "512Mi"
_RUN_BYTES: Final = 1 << 20
_DISRUPTED: Final = {"type": "DisruptionTarget", "status": "True"}


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The settings shared by all hooks of a cluster.

    Attributes:
        namespace: Namespace of Jobs and their secrets; it must exist.
        support_image: Image of the stage and publish containers.
        code_image: Image for releases that are code files; None refuses them.
        service_account: Of the pods. They get no token of it, and it needs no permission.
        schedule_seconds: How long a pod may wait for a node and for images.
        grace_seconds: Between SIGTERM and SIGKILL, at a hook's deadline.
        keep_seconds: How long a finished Job is kept for inspection. Its result is kept longer.
        store_patience_seconds: How long to wait for an archive that does not answer while a Job's
            result is read.
        overrides: The cluster's additions, in the form of dagster-k8s's `k8s` config.
    """

    namespace: str
    support_image: str
    code_image: str | None = None
    service_account: str = "feature-pipeline-hook"
    schedule_seconds: float = 1800.0
    grace_seconds: float = 10.0
    keep_seconds: int = 3_600
    store_patience_seconds: float = 3_600.0
    overrides: PodOverrides = field(default_factory=PodOverrides)

    def image_of(self, release: HookRelease) -> str | None:
        """Return the image of the hook's container."""
        return release.document.image or self.code_image

    def lifetime_seconds(self, request: RunRequest) -> float:
        """Return how long the pod's grants must be valid: waiting, the hook, and publishing."""
        hook = request.limits.timeout_seconds + self.grace_seconds
        return self.schedule_seconds + hook + 2 * PUBLISH_ALLOWANCE_SECONDS


def identity(request: RunRequest, image: str, archive: str) -> Digest:
    """Return the properties that a Job must share with `request` to be its attempt.

    Args:
        request: The attempt.
        image: Of the hook's container.
        archive: The store that the output goes to: another store's Job would leave nothing in ours.
    """
    return Digest.of(
        document_bytes(
            {
                "archive": archive,
                "run": request.question,
                "attempt": request.attempt,
                "release": str(request.release.digest),
                "image": image,
                "memory": request.limits.memory_bytes,
                "timeout": request.limits.timeout_seconds,
            }
        )
    )


def job_name(request: RunRequest, wanted: Digest) -> str:
    """Return the Job's name, short enough for the suffixes of its pods' names.

    It is the same for equal attempts, whichever worker asks.
    """
    hook = re.sub("[^a-z0-9]+", "-", request.release.document.hook.lower())[:24].strip("-")
    return f"hook-{hook or 'x'}-{wanted.hex[:16]}-{request.attempt}"


def secret_manifest(name: str, stage_url: str, publish: str) -> dict[str, Any]:
    """Return the Secret with the grants of stage and publish."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {ROLE_LABEL: "grant"}},
        "type": "Opaque",
        "stringData": {STAGE: stage_url, PUBLISH: publish},
    }


def job_manifest(
    name: str, request: RunRequest, settings: JobSettings, image: str, wanted: Digest
) -> dict[str, Any]:
    """Return the Job: stage and hook as init containers, then publish.

    `wanted` is its identity.
    """
    labels = {
        "app.kubernetes.io/managed-by": "feature-pipeline",
        ROLE_LABEL: "hook",
        # a label's value ends in a letter or a digit, a hook's name need not
        HOOK_LABEL: request.release.document.hook.rstrip("_"),
    }
    annotations = {IDENTITY: str(wanted), RUN: request.question, ATTEMPT: str(request.attempt)}
    overrides = settings.overrides
    template_metadata = {
        "labels": labels,
        "annotations": annotations
        | {
            # an autoscaler that moves the pod makes the hook begin again
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
    }
    spec = {
        "completions": 1,
        "parallelism": 1,
        # our policy counts attempts; only an evicted pod is replaced without counting
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [_DISRUPTED]}]},
        "ttlSecondsAfterFinished": settings.keep_seconds,
    }
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": merged(metadata, overrides.job_metadata),
        "spec": merged(spec, overrides.job_spec_config)
        | {
            "template": {
                "metadata": merged(template_metadata, overrides.pod_template_spec_metadata),
                "spec": merged(_pod(name, request, settings, image), overrides.pod_spec_config),
            }
        },
    }


def _pod(name: str, request: RunRequest, settings: JobSettings, image: str) -> dict[str, Any]:
    scratch = request.limits.scratch_bytes
    # what stage lays out beside what the hook may add; the log, and the word of the hook's end
    work = scratch + sum(file.size for file in request.release.document.code)
    run = log_file.LOG_HEAD_BYTES + log_file.LOG_TAIL_BYTES + _RUN_BYTES
    bounds = {"out": scratch, "tmp": scratch, "work": work, "run": run}
    # on the pod, not the Job: the Job's would delete the pod with its log. It has all of what the
    # grants have, so that it never cuts short what they still allow
    deadline = int(settings.lifetime_seconds(request))
    return {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": deadline,
        "terminationGracePeriodSeconds": int(settings.grace_seconds) + 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            _support(STAGE, name, settings, ["in", "files", "work", "bin"], []),
            _hook(request, settings, image),
        ],
        "containers": [_support(PUBLISH, name, settings, [], ["out", "run"])],
        "volumes": [
            # inputs are as large as they are; whatever the hook can write is bounded
            *({"name": volume, "emptyDir": {}} for volume in ("in", "files", "bin")),
            *({"name": n, "emptyDir": {"sizeLimit": str(most)}} for n, most in bounds.items()),
            {"name": "support-tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def _hook(request: RunRequest, settings: JobSettings, image: str) -> dict[str, Any]:
    release, limits = request.release.document, request.limits
    first, *rest = release.command
    if first in {file.name for file in release.code}:
        first = f"./{first}"
    cpu, memory = limits.cpu, str(limits.memory_bytes)
    environment = {
        "OSA_IN": "/osa/in",
        "OSA_FILES": "/osa/files",
        "OSA_OUT": "/osa/out",
        "OSA_HOOK_NAME": release.hook,
        "HOME": "/tmp",  # noqa: S108  (the container's)
        "TMPDIR": "/tmp",  # noqa: S108
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    container = {
        "name": HOOK,
        "image": image,
        "command": [
            "/osa/bin/wrapper",
            *("--log", "/osa/run/log", "--status", "/osa/run/status.json"),
            *("--head", str(log_file.LOG_HEAD_BYTES), "--tail", str(log_file.LOG_TAIL_BYTES)),
            *("--timeout", f"{limits.timeout_seconds:g}", "--grace", f"{settings.grace_seconds:g}"),
            # Kubernetes puts variables in place of $(NAME); $$ is one dollar sign.
            *("--", *(part.replace("$", "$$") for part in (first, *rest))),
        ],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {
            "requests": {"cpu": cpu, "memory": memory},
            # request equals limit in memory: what it was promised is what it may use
            "limits": {"cpu": cpu, "memory": memory},
        },
        "volumeMounts": [
            *(_mount(volume, is_read_only=True) for volume in ("in", "files", "bin")),
            *(_mount(volume) for volume in ("work", "out", "run")),
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
        "securityContext": _confined(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if release.code:
        container["workingDir"] = "/osa/work"
    return merged(container, settings.overrides.container_config)


def _support(
    which: str, name: str, settings: JobSettings, written: list[str], read: list[str]
) -> dict[str, Any]:
    variable = {STAGE: "FEATURE_PIPELINE_STAGE_URL", PUBLISH: "FEATURE_PIPELINE_PUBLISH"}[which]
    grant = {"secretKeyRef": {"name": name, "key": which}}
    node = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    return {
        "name": which,
        "image": settings.support_image,
        "command": ["python", "-m", f"feature_pipeline.pod.{which}"],
        "env": [
            {"name": variable, "valueFrom": grant},
            {"name": "FEATURE_PIPELINE_NODE", "valueFrom": node},
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": _SUPPORT_MEMORY},
        },
        "volumeMounts": [
            *(_mount(volume) for volume in written),
            *(_mount(volume, is_read_only=True) for volume in read),
            {"name": "support-tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
        "securityContext": _confined(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _mount(volume: str, *, is_read_only: bool = False) -> dict[str, Any]:
    return {"name": volume, "mountPath": f"/osa/{volume}", "readOnly": is_read_only}


def annotations_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotations of a Job as the API returns it."""
    return dict(manifest.get("metadata", {}).get("annotations") or {})
