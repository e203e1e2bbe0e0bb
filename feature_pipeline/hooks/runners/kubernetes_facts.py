"""What a Job and its pods say about a failure: the API's words in, facts out. No calls.

A pod is `Pending` as long as an init container runs, and the hook is one: what goes on is read from
the containers' states, never from the phase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runners.kubernetes_job import HOOK, PUBLISH, STAGE

Json = Mapping[str, Any]

MOST_REPLACEMENTS: Final = 3
"""A pod that is taken away is replaced without counting. One that is taken away for what the hook
does would be replaced for ever."""

_PULL: Final = frozenset({"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_NO_START: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_NO_START_ENDS: Final = frozenset({"StartError", "ContainerCannotRun"})
_TERMINATED_BY_SIGNAL: Final = 143
_FULL: Final = ("Usage of EmptyDir volume", "ephemeral local storage", "local ephemeral storage")
"""How a kubelet begins, or words, that a pod wrote more than it may."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a Job gives no result. `container` names whose log says more."""

    kind: FailureKind
    reason: str
    exit_code: int | None = None
    container: str | None = None


def newest(pods: Sequence[Json]) -> Json | None:
    """The pod that counts: the last one made."""
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def condition(thing: Json, kind: str) -> Json | None:
    """The condition of that type, if it is true."""
    for found in thing.get("status", {}).get("conditions") or ():
        if found["type"] == kind and found["status"] == "True":
            result: Json = found
            return result
    return None


def container_state(pod: Json, name: str) -> Json:
    """`waiting`, `running` or `terminated` of a container; empty before the kubelet has seen it."""
    status = pod.get("status", {})
    for found in (
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ):
        if found["name"] == name:
            state: Json = found.get("state") or {}
            return state
    return {}


def stuck(pod: Json, schedule_seconds: float, now: datetime) -> Diagnosis | None:
    """Why a pod that has not ended will not get on by itself."""
    for name in (STAGE, HOOK, PUBLISH):
        waiting = container_state(pod, name).get("waiting") or {}
        reason, message = waiting.get("reason"), waiting.get("message") or ""
        if reason in _PULL:
            return Diagnosis(FailureKind.IMAGE_PULL, f"{name}: {reason}: {message}")
        if reason in _NO_START:
            return Diagnosis(FailureKind.CANNOT_START, f"{name}: {reason}: {message}")
    if any(container_state(pod, name).keys() & {"running", "terminated"} for name in (STAGE, HOOK)):
        return None
    age = (now - moment(pod["metadata"]["creationTimestamp"])).total_seconds()
    if age <= schedule_seconds:
        return None
    unscheduled = [
        c
        for c in pod.get("status", {}).get("conditions") or ()
        if c["type"] == "PodScheduled" and c["status"] == "False"
    ]
    said = str(unscheduled[0].get("message") or "") if unscheduled else "no container has started"
    return Diagnosis(FailureKind.UNSCHEDULABLE, f"{said} (for {age:.0f} s)")


def taken_away(pod: Json) -> Diagnosis | None:
    """Why the cluster took a pod away, if it did."""
    status = pod.get("status", {})
    disrupted = condition(pod, "DisruptionTarget")
    if disrupted is not None:
        said = f"{disrupted.get('reason')}: {disrupted.get('message') or ''}"
        return Diagnosis(FailureKind.EVICTED, f"its pod was taken away: {said}".rstrip(": "))
    if status.get("reason") in {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated"}:
        said = f"{status['reason']}: {status.get('message') or ''}"
        if any(word in said for word in _FULL):
            reason = f"it wrote more than limits.scratch allows: {said}".rstrip(": ")
            return Diagnosis(FailureKind.OUT_OF_SPACE, reason)
        return Diagnosis(FailureKind.EVICTED, f"its pod was taken away: {said}".rstrip(": "))
    return None


def is_going(pod: Json) -> bool:
    """Whether somebody has asked for the pod to be deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def lost(pod: Json, patience_seconds: float, now: datetime) -> Diagnosis | None:
    """That a pod which should be gone is not: the node that would end it does not answer.

    No other pod replaces it before it has ended.
    """
    if not is_going(pod) or pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}:
        return None
    overdue = (now - moment(pod["metadata"]["deletionTimestamp"])).total_seconds()
    if overdue <= patience_seconds:
        return None
    node = pod.get("spec", {}).get("nodeName") or "its node"
    reason = f"its pod should have been gone for {overdue:.0f} s: {node} may be lost"
    return Diagnosis(FailureKind.EVICTED, reason)


def failure(job: Json, pod: Json | None) -> Diagnosis:
    """Why a Job failed, by its last pod if there is one still."""
    failed = condition(job, "Failed") or {}
    if pod is not None:
        found = taken_away(pod) or _by_containers(pod)
        if found is not None:
            return found
    said = f"{failed.get('reason')}: {failed.get('message') or ''}".rstrip(": ")
    is_late = failed.get("reason") == "DeadlineExceeded" or (
        pod is not None and pod.get("status", {}).get("reason") == "DeadlineExceeded"
    )
    if is_late:
        return Diagnosis(FailureKind.DEADLINE, f"the pod took longer than it may: {said}")
    if pod is None:
        return Diagnosis(FailureKind.EVICTED, f"its pod is gone: {said}")
    return Diagnosis(FailureKind.UNKNOWN, f"the Job failed: {said}")


def _by_containers(pod: Json) -> Diagnosis | None:
    for name in (STAGE, HOOK, PUBLISH):
        ended = container_state(pod, name).get("terminated")
        if not ended or not ended.get("exitCode"):
            continue
        code, reason = int(ended["exitCode"]), str(ended.get("reason") or "")
        message = str(ended.get("message") or "").strip()
        if name == STAGE:
            said = f"stage ended with status {code} ({reason}): {message}"
            return Diagnosis(FailureKind.STAGE_FAILED, said, code, name)
        if name == PUBLISH:
            said = f"publish ended with status {code} ({reason}): {message}"
            return Diagnosis(FailureKind.PUBLISH_FAILED, said, code, name)
        return _hook_ended(pod, code, reason, message)
    return None


def _hook_ended(pod: Json, code: int, reason: str, message: str) -> Diagnosis:
    """The wrapper's container did not end by itself with 0: something ended it from outside."""
    if reason == "OOMKilled":
        said = "it ran out of memory; the kernel ended its container"
        return Diagnosis(FailureKind.OUT_OF_MEMORY, said, code, HOOK)
    if pod.get("status", {}).get("reason") == "DeadlineExceeded":
        return Diagnosis(FailureKind.DEADLINE, "its pod took longer than it may", code, HOOK)
    if reason in _NO_START_ENDS:
        return Diagnosis(FailureKind.CANNOT_START, f"{reason}: {message}", None, HOOK)
    if code == _TERMINATED_BY_SIGNAL:
        return Diagnosis(FailureKind.EVICTED, "its pod was ended from outside", code, HOOK)
    said = f"its container ended with status {code} ({reason}): {message}"
    return Diagnosis(FailureKind.UNKNOWN, said.rstrip(": "), code, HOOK)


def moment(text: object) -> datetime:
    """An instant as the API writes it."""
    return datetime.fromisoformat(str(text)).astimezone(UTC)
