"""Run hooks as Kubernetes Jobs: stage, hook and publish in one pod.

A Job is named after its attempt. A worker that makes the same attempt again, after another died or
beside it, finds the Job and waits for it; if the Job is gone, the worker uses its published result.
An interrupt leaves the Job running for that, unless the run is cancelled.

What this runner does not promise:

- Whether the pod has a network is the cluster's NetworkPolicy, for all its containers alike.
- The hook's container starts again from the beginning if the cluster evicts its pod.
- Peak memory is that of the largest process, not of their sum.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.hooks.failure import LOG_TAIL_LINES, FailureKind
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.kubernetes import failure_facts
from feature_pipeline.hooks.runners.kubernetes import job as jobs
from feature_pipeline.hooks.runners.kubernetes.api import Cluster, ClusterRefusedError, connect_here
from feature_pipeline.hooks.runners.kubernetes.failure_facts import Diagnosis
from feature_pipeline.hooks.runners.kubernetes.pod_log import PodLog
from feature_pipeline.hooks.runners.kubernetes.results import (
    download_log,
    runtime_facts,
    tail_of,
    verdict,
    with_last_line_ended,
)
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import (
    AttemptEnd,
    AttemptKey,
    Grants,
    PodResult,
    Transfer,
)
from feature_pipeline.hooks.runners.shared.log_file import open_log
from feature_pipeline.hooks.runners.shared.log_stream import LogStream
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.release import HookRelease

_TICK_SECONDS: Final = 0.1
_CANCEL_SECONDS: Final = 0.5
_LONGEST_BACKOFF_SECONDS: Final = 30.0
_LOST_SECONDS: Final = 900.0
"""Time beyond all that a pod was granted, after which it counts as lost."""
_REFUSAL_SECONDS: Final = 2.0
"""A cluster creates a pod within a second, or reports why not; after this it is asked."""
_WARNING_SECONDS: Final = 10.0
"""Interval between questions why there is no pod."""
_DELETION_SECONDS: Final = 120.0
"""How long to wait for a Job's deletion before assuming that it will stay."""

T = TypeVar("T")
# Jobs that a later run of the same question must not find: they learnt nothing about the batch
_FORGOTTEN: Final = frozenset(
    {
        FailureKind.CANCELLED,
        FailureKind.CANNOT_START,
        FailureKind.CLUSTER_REFUSED,
        FailureKind.IMAGE_PULL,
        FailureKind.UNSCHEDULABLE,
    }
)


class KubernetesRunner:
    """Runs a release's image, or its code files in `settings.code_image`, as a Job.

    Args:
        transfer: Moves inputs and output.
        settings: The settings shared by all hooks.
        connect: Makes a client of the API; the default finds the cluster that this process runs in.
        poll_seconds: Interval between polls of the Job. Watches were refused: they can break
            unnoticed, while the next poll repairs a failed one.
        patience_seconds: How long the API server may be unavailable.
    """

    name = "kubernetes"

    def __init__(
        self,
        transfer: Transfer,
        settings: jobs.JobSettings,
        *,
        connect: Callable[[], Any] = connect_here,
        poll_seconds: float = 2.0,
        patience_seconds: float = 300.0,
    ) -> None:
        self._transfer = transfer
        self._settings = settings
        self._connect = connect
        self._poll_seconds = poll_seconds
        self._patience_seconds = patience_seconds

    def image_of(self, release: HookRelease) -> str | None:
        """Return the image of the release's hooks, which is part of their attempts' names."""
        return self._settings.image_of(release)

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        """Create the attempt's Job or attach to it, and wait for its result; see `HookRunner.run`.

        An interrupt passes through and leaves the Job for another worker, unless the monitor
        reports that the run is cancelled: then the Job is deleted.
        """
        request.workspace.create()
        request.workspace.clear_output()
        started_at = datetime.now(UTC)
        path = request.workspace.log(request.attempt)
        cluster = Cluster(self._settings.namespace, self._connect, self._patience_seconds)
        try:
            with open_log(path) as file:
                log = LogStream(file, monitor.log)
                attempt = _Attempt(cluster, self._transfer, self._settings, request, monitor, log)
                end = attempt.run(self._poll_seconds)
                log.finish()
        finally:
            cluster.close()
        if end.log is not None:
            # what was followed may have been cut short; this is all that the pod kept
            path.write_bytes(end.log)
        result, diagnosis = end.result, end.diagnosis
        failure = None
        if diagnosis is not None:
            failure = runtime_facts(diagnosis, end.tail or log.tail(), request)
        return RunResult(
            exit_code=diagnosis.exit_code if diagnosis is not None else 0,
            failure=failure,
            started_at=result.started_at if result is not None else started_at,
            finished_at=result.finished_at if result is not None else datetime.now(UTC),
            log=path,
            peak_memory_bytes=result.peak_memory_bytes if result is not None else None,
            node=(result.node if result is not None else "") or end.node,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an attempt. `result` is None if the pod published none."""

    diagnosis: Diagnosis | None
    result: PodResult | None = None
    log: bytes | None = None
    tail: tuple[str, ...] = ()
    node: str = "unknown"


class _Attempt:
    """One Job, from before its creation until its result is here."""

    def __init__(
        self,
        cluster: Cluster,
        transfer: Transfer,
        settings: jobs.JobSettings,
        request: RunRequest,
        monitor: RunMonitor,
        log: LogStream,
    ) -> None:
        self._cluster = cluster
        self._transfer = transfer
        self._settings = settings
        self._request = request
        self._monitor = monitor
        self._log = log
        self._pod_log = PodLog(cluster.follow_log, jobs.HOOK)
        self._without_pod_since = time.monotonic()
        self._next_warning = float("-inf")
        self._began_at = datetime.now(UTC)
        self._last_pod: dict[str, Any] | None = None
        self._evicted: dict[str, Diagnosis] = {}
        self._pods: set[str] = set()
        self._offered_at = float("-inf")
        self._next_question = 0.0

    def run(self, poll_seconds: float) -> _End:
        """Return the end of the attempt, also for errors on our side of it."""
        request = self._request
        image = self._settings.image_of(request.release)
        if refusal := _refusal(request, image):
            return _End(refusal)
        assert image is not None  # noqa: S101  (refused above)
        wanted = jobs.identity(request, image, self._transfer.archive)
        name = jobs.job_name(request, wanted)
        try:
            if end := self._ensure(name, image, wanted):
                # nothing of ours was made: nothing is deleted
                return end
            return self._finish(name, self._wait(name, poll_seconds))
        except ClusterRefusedError as error:
            return _End(Diagnosis(FailureKind.CLUSTER_REFUSED, str(error)))
        except NotFoundError as error:
            # the namespace, or an input that the archive has lost
            return _End(Diagnosis(FailureKind.CLUSTER_REFUSED, str(error)))
        except CorruptDataError as error:
            return _End(Diagnosis(FailureKind.PUBLISH_FAILED, str(error)))
        except BaseException:
            # Also a store or a cluster that gives no answer for long: nothing is known of the
            # attempt then, least of all that another is due. The Job continues, and the next run
            # attaches to it.
            if self._is_cancelled_for_sure():
                self._delete(name)
            raise
        finally:
            self._pod_log.close()

    def _ensure(self, name: str, image: str, wanted: Digest) -> _End | None:
        """Ensure that this attempt has a Job or a result; otherwise return its end."""
        request = self._request
        job = self._job_to_attach_to(name)
        if job is None and self._result(name) is not None:
            self._log.note(f"Job {name} is gone, and its published result is used")
            return None
        if job is None and (ended := self._with_retry(lambda: self._transfer.end(self._key(name)))):
            self._log.note(f"Job {name} ended before, without a result; the end of its log:")
            self._log.feed("".join(f"{line}\n" for line in ended.failure.log_tail).encode())
            failure = ended.failure
            diagnosis = Diagnosis(failure.kind, failure.reason, failure.exit_code)
            return _End(diagnosis, tail=failure.log_tail, node=ended.node)
        if job is None:
            try:
                grants = self._grants(name)
            except InvalidInputError as error:
                return _End(Diagnosis(FailureKind.CANNOT_START, str(error)))
            manifest = jobs.job_manifest(name, request, self._settings, image, wanted)
            try:
                job, warnings = self._cluster.create_job(manifest)
            except ConflictError:
                # Another worker was faster, or our own call succeeded and its answer was lost.
                job = self._cluster.job(name)
            else:
                for warning in warnings:
                    self._log.note(f"the cluster warns about Job {name}: {warning}")
                self._put_secret(job, grants)
                return None
        if job is None:
            return _End(Diagnosis(FailureKind.EVICTED, f"Job {name} was deleted at once"))
        if jobs.annotations_of(job).get(jobs.IDENTITY) != str(wanted):
            reason = f"a Job named {name} exists and is not ours: delete it"
            return _End(Diagnosis(FailureKind.CLUSTER_REFUSED, reason))
        if not any(failure_facts.has_begun(pod) for pod in self._cluster.pods(name)):
            # The worker that made the Job may have died before it made the Secret.
            self._put_secret(job, self._grants(name))
        self._log.note(f"attached to Job {name}, which was made before")
        return None

    def _grants(self, name: str) -> Grants:
        """Return the temporary grants for containers that start from now on."""
        lifetime = self._settings.lifetime_seconds(self._request)
        workspace = self._request.workspace
        return self._with_retry(lambda: self._transfer.offer(self._key(name), workspace, lifetime))

    def _put_secret(self, job: dict[str, Any], grants: Grants) -> None:
        """Grant it to the Job's pods. The Secret is created after its Job, to be deleted with it.

        Raises:
            ClusterRefusedError: It may not be created; the Job, which cannot run without it, is
                deleted.
        """
        name = job["metadata"]["name"]
        secret = jobs.secret_manifest(name, grants.stage_url, grants.publish)
        try:
            self._cluster.put_secret(secret, job)
        except ClusterRefusedError:
            self._delete(name)
            raise
        self._offered_at = time.monotonic()

    def _offer_again(self, job: dict[str, Any], pod: failure_facts.Json | None) -> None:
        """Renew grants before they expire in a queue, and for a pod that replaces another."""
        is_suspended = pod is None and bool(job["spec"].get("suspend"))
        half = self._settings.lifetime_seconds(self._request) / 2
        is_due = is_suspended and time.monotonic() - self._offered_at > half
        if pod is not None and pod["metadata"]["uid"] not in self._pods:
            is_due = bool(self._pods)
            self._pods.add(pod["metadata"]["uid"])
        if is_due:
            self._put_secret(job, self._grants(job["metadata"]["name"]))

    def _job_to_attach_to(self, name: str) -> dict[str, Any] | None:
        """Return the Job of that name, after waiting for one that is being deleted."""
        end = time.monotonic() + _DELETION_SECONDS
        while True:
            job = self._cluster.job(name)
            if job is None or not job["metadata"].get("deletionTimestamp"):
                return job
            if time.monotonic() > end or self._monitor.is_cancelled():
                return job
            time.sleep(_CANCEL_SECONDS)

    def _wait(self, name: str, poll_seconds: float) -> Diagnosis | None:
        """Wait until the Job is complete; return why it will not be, if so."""
        while True:
            job = self._cluster.job(name)
            if job is None:
                if self._result(name) is not None:
                    return None
                return Diagnosis(
                    FailureKind.EVICTED, f"its Job {name} was deleted by another program"
                )
            pods = self._cluster.pods(name)
            pod = failure_facts.newest(pods)
            if pod is not None:
                self._last_pod = dict(pod)
                self._follow(pod)
            self._offer_again(job, pod)
            if failure_facts.condition(job, "Complete") is not None:
                return None
            if failure_facts.condition(job, "Failed") is not None:
                return failure_facts.failure(job, pod)
            if (diagnosis := self._stuck(job, pods)) is not None:
                self._pump_out()
                self._delete(name)
                return diagnosis
            end = time.monotonic() + poll_seconds
            while (now := time.monotonic()) < end:
                self._pod_log.pump(self._log, min(_TICK_SECONDS, poll_seconds))
                if now >= self._next_question:
                    self._next_question = now + _CANCEL_SECONDS
                    if self._monitor.is_cancelled():
                        return Diagnosis(FailureKind.CANCELLED, "cancelled")

    def _stuck(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> Diagnosis | None:
        settings, now = self._settings, datetime.now(UTC)
        pod = failure_facts.newest(pods)
        if pod is None:
            if job["spec"].get("suspend"):
                # a queue (Kueue) holds it back, and how long is the queue's business
                self._without_pod_since = time.monotonic()
            return self._refused_pod(job["metadata"]["name"])
        # Between the eviction of a pod and its replacement there is none for seconds.
        self._without_pod_since = time.monotonic()
        for each in pods:
            if (eviction := failure_facts.eviction(each)) is not None:
                self._evicted[each["metadata"]["uid"]] = eviction
        # A pod that was taken away may be gone before it is looked at: only such ones are replaced.
        missing = self._pods - {pod["metadata"]["uid"]} - self._evicted.keys()
        if (times := len(self._evicted) + len(missing)) > failure_facts.MOST_REPLACEMENTS:
            last = next(reversed(self._evicted.values()), failure_facts.REPLACED)
            return Diagnosis(last.kind, f"{last.reason} ({times} times)")
        age = (now - failure_facts.moment(pod["metadata"]["creationTimestamp"])).total_seconds()
        if age > settings.lifetime_seconds(self._request) + _LOST_SECONDS:
            # its own deadline has passed, and the node that would keep it does not answer
            reason = f"its pod has not ended in {age:.0f} s: its node may be lost"
            return Diagnosis(FailureKind.EVICTED, reason)
        if (diagnosis := failure_facts.lost(pod, _LOST_SECONDS, now)) is not None:
            return diagnosis
        if failure_facts.is_going(pod) or pod.get("status", {}).get("phase") == "Failed":
            return None
        return failure_facts.stuck(pod, settings.schedule_seconds, now)

    def _refused_pod(self, name: str) -> Diagnosis | None:
        """Return why the Job has no pod, if the cluster will make none or the time is over."""
        now = time.monotonic()
        absent = now - self._without_pod_since
        is_overdue = absent > self._settings.schedule_seconds
        if not is_overdue and (absent < _REFUSAL_SECONDS or now < self._next_warning):
            return None
        self._next_warning = now + _WARNING_SECONDS
        warning = self._cluster.last_warning(name)
        if not is_overdue and not failure_facts.is_permanent_refusal(warning):
            return None
        reason = f"the cluster made no pod for it: {warning or 'and gave no reason'}"
        return Diagnosis(FailureKind.CLUSTER_REFUSED, reason)

    def _follow(self, pod: failure_facts.Json) -> None:
        state = failure_facts.container_state(pod, jobs.HOOK)
        if "running" in state or "terminated" in state:
            self._pod_log.follow(pod["metadata"]["uid"], pod["metadata"]["name"])

    def _pump_out(self) -> None:
        self._pod_log.drain(self._log)

    def _finish(self, name: str, diagnosis: Diagnosis | None) -> _End:
        """Return the result of a finished Job, with the rest of its log."""
        node = str((self._last_pod or {}).get("spec", {}).get("nodeName") or "unknown")
        if diagnosis is not None and diagnosis.kind is FailureKind.CANCELLED:
            self._log.note("cancelled: deleting its Job")
            self._delete(name)
            return _End(diagnosis, node=node)
        # A pod may have been taken away after it had published: what it says stands.
        result = self._result(name)
        if result is not None:
            diagnosis = None
        self._pump_out()
        if diagnosis is None and result is None:
            reason = f"Job {name} is complete and published nothing"
            diagnosis = Diagnosis(FailureKind.PUBLISH_FAILED, reason)
        if result is None:
            assert diagnosis is not None  # noqa: S101  (set above)
            tail = self._tail(diagnosis) or self._log.tail()
            if diagnosis.kind in _FORGOTTEN:
                self._delete(name)
            else:
                self._note_end(name, diagnosis, tail, node)
            return _End(diagnosis, tail=tail, node=node)
        try:
            data = self._with_retry(
                lambda: download_log(self._transfer, self._key(name), result, self._request)
            )
        except (NotFoundError, CorruptDataError) as error:
            return _End(Diagnosis(FailureKind.PUBLISH_FAILED, str(error)), node=node)
        self._pod_log.show_rest(self._log, data)
        tail = tail_of(data)
        failure = verdict(self._request, result, tail)
        if failure is not None and failure.kind in _FORGOTTEN:
            # After a correction of the program or the image the same question is asked again.
            self._delete(name)
            self._with_retry(lambda: self._transfer.forget(self._key(name)))
        return _End(failure, result, with_last_line_ended(data), tail=tail, node=node)

    def _note_end(self, name: str, diagnosis: Diagnosis, tail: tuple[str, ...], node: str) -> None:
        """Record the end, so that a worker that repeats this attempt goes to the next one."""
        failure = runtime_facts(diagnosis, tail, self._request)
        end = AttemptEnd(failure, self._began_at, datetime.now(UTC), node)
        try:
            self._transfer.note_end(self._key(name), end)
        except (StoreUnavailableError, OutcomeUnknownError) as error:
            # must not hide what happened before
            self._log.note(f"how Job {name} ended could not be recorded: {error}")

    def _key(self, name: str) -> AttemptKey:
        return AttemptKey(self._request.run_id, name)

    def _result(self, name: str) -> PodResult | None:
        return self._with_retry(lambda: self._transfer.result(self._key(name)))

    def _with_retry(self, read: Callable[[], T]) -> T:
        """Return the result of `read`, once the store answers.

        Raises:
            StoreUnavailableError: It did not for `store_patience_seconds`.
        """
        end, backoff = time.monotonic() + self._settings.store_patience_seconds, _TICK_SECONDS
        while True:
            try:
                return read()
            except StoreUnavailableError as error:
                if time.monotonic() + backoff > end or self._monitor.is_cancelled():
                    raise
                self._log.note(
                    f"the archive does not answer, trying again in {backoff:g} s: {error}"
                )
            time.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    def _tail(self, diagnosis: Diagnosis) -> tuple[str, ...]:
        """Return the last lines of the container at fault."""
        pod = self._last_pod
        if diagnosis.container in (None, jobs.HOOK) or pod is None:
            return ()
        lines = self._cluster.log_tail(
            pod["metadata"]["name"], str(diagnosis.container), LOG_TAIL_LINES
        )
        return tuple(lines)

    def _is_cancelled_for_sure(self) -> bool:
        with suppress(Exception):
            return self._monitor.is_cancelled(now=True)
        return False

    def _delete(self, name: str) -> None:
        try:
            self._cluster.delete_job(name)
        except (FeaturePipelineError, ClusterRefusedError) as error:
            # must not hide what happened before
            with suppress(Exception):
                self._log.note(f"Job {name} could not be deleted: {error}")


def _refusal(request: RunRequest, image: str | None) -> Diagnosis | None:
    version = request.release.document.version
    if image is None:
        reason = (
            f"release {version!r} is code files and names no image: set the runner's code_image"
        )
        return Diagnosis(FailureKind.CANNOT_START, reason)
    if "@" not in image:
        reason = f"{image} exists on one machine only: name an image in a registry, name@sha256:..."
        return Diagnosis(FailureKind.CANNOT_START, reason)
    return None
