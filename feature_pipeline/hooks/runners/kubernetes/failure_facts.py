"""Derive the facts of a failure from a Job and its pods. No calls.

A pod is `Pending` as long as an init container runs, and the hook is one: progress is read from the
containers' states, never from the phase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runners.kubernetes.job import HOOK, PUBLISH, STAGE

Json = Mapping[str, Any]

MOST_REPLACEMENTS: Final = 3
"""Evicted pods are replaced without counting as retries. This limits a pod that is evicted for what
the hook does.
"""

_PULL_REFUSED: Final = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_PULL_FAILED: Final = frozenset({"ErrImagePull", "ImagePullBackOff"})
"""The kubelet tries again. A pod's status lags behind its events by up to 25 s, so the pull may
have succeeded by the time that this state is seen.
"""
_NO_SUCH_IMAGE: Final = ("code = NotFound", ": not found", "manifest unknown")
_NO_START: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_NO_START_ENDS: Final = frozenset({"StartError", "ContainerCannotRun"})
_TERMINATED_BY_SIGNAL: Final = 143
_KILLED: Final = 137
_OUT_OF_MEMORY: Final = "OOMKilled"
_HANGS_SECONDS: Final = 15.0
"""After this time, a pod whose hook ran out of memory is considered stuck in the kubelet. Publish
starts within a second if it starts at all.
"""
_SECRET_SECONDS: Final = 120.0
"""How long a pod may wait for the Secret that is made right after its Job. A kubelet looks for it
again at every sync, about once in ten seconds.
"""
_PERMANENT_REFUSALS: Final = (
    "violates PodSecurity",
    "no PriorityClass with name",
    "error looking up service account",
    "is forbidden: maximum ",
    "is forbidden: minimum ",
    "is forbidden: [maximum ",
    "is forbidden: [minimum ",
)
"""Messages of an API server that will never admit the pod. A quota may pass; it is not here."""
_FULL: Final = ("Usage of EmptyDir volume", "ephemeral local storage", "local ephemeral storage")
"""Beginnings of kubelet messages about a pod that exceeded its disk limit."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a Job has no result. `container` names the one whose log has details."""

    kind: FailureKind
    reason: str
    exit_code: int | None = None
    container: str | None = None


REPLACED: Final = Diagnosis(FailureKind.EVICTED, "its pod was evicted or deleted, and replaced")


def newest(pods: Sequence[Json]) -> Json | None:
    """Return the last created pod, which is the one that counts."""
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def condition(thing: Json, kind: str) -> Json | None:
    """Return the condition of that type, if it is true."""
    for candidate in thing.get("status", {}).get("conditions") or ():
        if candidate["type"] == kind and candidate["status"] == "True":
            result: Json = candidate
            return result
    return None


def container_state(pod: Json, name: str) -> Json:
    """Return a container's `waiting`, `running` or `terminated`; empty if unknown."""
    status = pod.get("status", {})
    for container_status in (
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ):
        if container_status["name"] == name:
            state: Json = container_status.get("state") or {}
            return state
    return {}


def stuck(pod: Json, schedule_seconds: float, now: datetime) -> Diagnosis | None:
    """Return why a pod that has not ended cannot make progress; None if it can."""
    for name in (STAGE, HOOK, PUBLISH):
        waiting = container_state(pod, name).get("waiting") or {}
        reason, message = waiting.get("reason"), waiting.get("message") or ""
        if reason in _PULL_REFUSED or _is_pull_hopeless(
            pod, reason, message, schedule_seconds, now
        ):
            return Diagnosis(FailureKind.IMAGE_PULL, f"{name}: {reason}: {message}")
        if reason in _NO_START and not _is_secret_awaited(pod, message, now):
            return Diagnosis(FailureKind.CANNOT_START, f"{name}: {reason}: {message}")
    if (diagnosis := _hangs(pod, now)) is not None:
        return diagnosis
    if has_begun(pod):
        return None
    age = (now - moment(pod["metadata"]["creationTimestamp"])).total_seconds()
    if age <= schedule_seconds:
        return None
    unscheduled = [
        c
        for c in pod.get("status", {}).get("conditions") or ()
        if c["type"] == "PodScheduled" and c["status"] == "False"
    ]
    cause = str(unscheduled[0].get("message") or "") if unscheduled else "no container has started"
    return Diagnosis(FailureKind.UNSCHEDULABLE, f"{cause} (for {age:.0f} s)")


def has_begun(pod: Json) -> bool:
    """Return whether a container of the pod has started."""
    return any(
        container_state(pod, name).keys() & {"running", "terminated"} for name in (STAGE, HOOK)
    )


def _is_pull_hopeless(
    pod: Json, reason: object, message: str, schedule_seconds: float, now: datetime
) -> bool:
    """Return whether an image will not arrive: the registry lacks it, or time is up."""
    if reason in _PULL_REFUSED:
        return True
    if reason not in _PULL_FAILED:
        return False
    if reason == "ImagePullBackOff" and any(text in message for text in _NO_SUCH_IMAGE):
        return True
    return _seconds_on_node(pod, now) > schedule_seconds


def _is_secret_awaited(pod: Json, message: str, now: datetime) -> bool:
    is_absent = message.startswith("secret ") and message.endswith("not found")
    return is_absent and _seconds_on_node(pod, now) <= _SECRET_SECONDS


def _seconds_on_node(pod: Json, now: datetime) -> float:
    """Return how long a pod has been on its node, or else since its creation."""
    scheduled = condition(pod, "PodScheduled") or {}
    since = scheduled.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    return (now - moment(since)).total_seconds()


def _hangs(pod: Json, now: datetime) -> Diagnosis | None:
    """Diagnose a hook's container killed for memory after which the kubelet starts nothing.

    A kubelet takes an init container with this reason for a failed one whatever its exit code. If
    the code is 0 it starts nothing more, and does not end the pod either.
    """
    ended = _killed_for_memory(pod)
    if ended is None or container_state(pod, PUBLISH).keys() & {"running", "terminated"}:
        return None
    if (now - moment(ended["finishedAt"])).total_seconds() <= _HANGS_SECONDS:
        return None
    return _out_of_memory(int(ended.get("exitCode") or 0))


def _killed_for_memory(pod: Json) -> Json | None:
    ended: Json = container_state(pod, HOOK).get("terminated") or {}
    return ended if ended.get("reason") == _OUT_OF_MEMORY else None


def _out_of_memory(code: int) -> Diagnosis:
    reason = "it ran out of memory; the kernel ended its container"
    return Diagnosis(FailureKind.OUT_OF_MEMORY, reason, code or _KILLED, HOOK)


def is_permanent_refusal(warning: str) -> bool:
    """Return whether the cluster's warning about a Job means that it will never create its pod."""
    return any(text in warning for text in _PERMANENT_REFUSALS)


def refused_by_kubelet(pod: Json) -> Diagnosis | None:
    """Return why the kubelet refused a pod that was bound to its node, if it did.

    Such a pod has failed for a reason, and none of its containers was ever started.
    """
    status = pod.get("status", {})
    reason = status.get("reason")
    container_statuses = (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    )
    if status.get("phase") != "Failed" or not reason or container_statuses:
        return None
    detail = f"the node refused its pod: {reason}: {status.get('message') or ''}".rstrip(": ")
    return Diagnosis(FailureKind.UNSCHEDULABLE, detail)


def eviction(pod: Json) -> Diagnosis | None:
    """Return why the cluster evicted or deleted a pod, if it did."""
    status = pod.get("status", {})
    disrupted = condition(pod, "DisruptionTarget")
    if disrupted is not None:
        detail = f"{disrupted.get('reason')}: {disrupted.get('message') or ''}"
        return Diagnosis(FailureKind.EVICTED, f"its pod was taken away: {detail}".rstrip(": "))
    if status.get("reason") in {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated"}:
        detail = f"{status['reason']}: {status.get('message') or ''}"
        if any(word in detail for word in _FULL):
            reason = f"it wrote more than limits.scratch allows: {detail}".rstrip(": ")
            return Diagnosis(FailureKind.OUT_OF_SPACE, reason)
        return Diagnosis(FailureKind.EVICTED, f"its pod was taken away: {detail}".rstrip(": "))
    return None


def is_going(pod: Json) -> bool:
    """Return whether the pod's deletion was requested."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def lost(pod: Json, timeout_seconds: float, now: datetime) -> Diagnosis | None:
    """Diagnose a pod that should be gone and is not: its node does not answer.

    No other pod replaces it before it has ended.
    """
    if not is_going(pod) or pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}:
        return None
    overdue = (now - moment(pod["metadata"]["deletionTimestamp"])).total_seconds()
    if overdue <= timeout_seconds:
        return None
    node = pod.get("spec", {}).get("nodeName") or "its node"
    reason = f"its pod should have been gone for {overdue:.0f} s: {node} may be lost"
    return Diagnosis(FailureKind.EVICTED, reason)


def failure(job: Json, pod: Json | None) -> Diagnosis:
    """Return why a Job failed, from its last pod if one still exists."""
    failed = condition(job, "Failed") or {}
    if pod is not None:
        diagnosis = eviction(pod) or refused_by_kubelet(pod) or _by_containers(pod)
        if diagnosis is not None:
            return diagnosis
    detail = f"{failed.get('reason')}: {failed.get('message') or ''}".rstrip(": ")
    is_late = failed.get("reason") == "DeadlineExceeded" or (
        pod is not None and pod.get("status", {}).get("reason") == "DeadlineExceeded"
    )
    if is_late:
        return Diagnosis(FailureKind.DEADLINE, f"the pod took longer than it may: {detail}")
    if pod is None:
        return Diagnosis(FailureKind.EVICTED, f"its pod is gone: {detail}")
    return Diagnosis(FailureKind.UNKNOWN, f"the Job failed: {detail}")


def _by_containers(pod: Json) -> Diagnosis | None:
    for name in (STAGE, HOOK, PUBLISH):
        ended = container_state(pod, name).get("terminated")
        if name == HOOK and (killed := _killed_for_memory(pod)) is not None:
            return _out_of_memory(int(killed.get("exitCode") or 0))
        if not ended or not ended.get("exitCode"):
            continue
        code, reason = int(ended["exitCode"]), str(ended.get("reason") or "")
        message = str(ended.get("message") or "").strip()
        if name == STAGE:
            detail = f"stage ended with status {code} ({reason}): {message}"
            return Diagnosis(FailureKind.STAGE_FAILED, detail, code, name)
        if name == PUBLISH:
            detail = f"publish ended with status {code} ({reason}): {message}"
            return Diagnosis(FailureKind.PUBLISH_FAILED, detail, code, name)
        return _hook_ended(pod, code, reason, message)
    return None


def _hook_ended(pod: Json, code: int, reason: str, message: str) -> Diagnosis:
    """Return whether something outside ended the wrapper's container, rather than exit status 0."""
    if pod.get("status", {}).get("reason") == "DeadlineExceeded":
        return Diagnosis(FailureKind.DEADLINE, "its pod took longer than it may", code, HOOK)
    if reason in _NO_START_ENDS:
        return Diagnosis(FailureKind.CANNOT_START, f"{reason}: {message}", None, HOOK)
    if code == _TERMINATED_BY_SIGNAL:
        return Diagnosis(FailureKind.EVICTED, "its pod was ended from outside", code, HOOK)
    detail = f"its container ended with status {code} ({reason}): {message}"
    return Diagnosis(FailureKind.UNKNOWN, detail.rstrip(": "), code, HOOK)


def moment(text: object) -> datetime:
    """Return an instant as the API writes it."""
    return datetime.fromisoformat(str(text)).astimezone(UTC)
