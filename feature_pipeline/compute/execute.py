"""Carry out a plan: stage the inputs, run the hook, collect its output into an artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.manifest import ENDED_WELL, FailureInfo, RunInfo, StartInfo
from feature_pipeline.archive.publish import Artifact, Completion, CompletionStatus
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.assemble_artifact import (
    carried_artifact,
    collect_output,
    failed_artifact,
    read_output,
)
from feature_pipeline.compute.in_flight import register
from feature_pipeline.compute.plan import ComputePlan
from feature_pipeline.compute.stage_input import stage_inputs
from feature_pipeline.errors import RuntimeFailure
from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, granted_limits
from feature_pipeline.hooks.parts import PartLimits, run_in_parts
from feature_pipeline.hooks.run import HookRun
from feature_pipeline.hooks.runner import (
    HookRunner,
    LastingRunner,
    RunMonitor,
    RunRequest,
    Workspace,
)
from feature_pipeline.model.definition import Scope
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import DecodedOutput, Outcome, OutcomeKind, Status

NO_RUNNER = "none"
"""Name of the runner in artifacts for which no hook process started."""


@dataclass(frozen=True, slots=True)
class Execution:
    """The result of carrying out a plan: an artifact, failed or not, ready to be published.

    Its raw files and log are in `workspace` until they are published.
    """

    plan: ComputePlan
    artifact: Artifact
    hook_run: HookRun | None


class HookAborted(RuntimeFailure):
    """The hook could not be run at all; nothing is known about the batch.

    `failure` has the reason and the decision; `hook_run` has every attempt.
    """

    def __init__(self, message: str, failure: FailureInfo, hook_run: HookRun) -> None:
        super().__init__(message)
        self.failure = failure
        self.hook_run = hook_run


def execute_plan(
    store: BlobStore,
    plan: ComputePlan,
    runner: HookRunner,
    monitor: RunMonitor,
    workspace: Workspace,
    *,
    request_id: str,
    dagster_run_id: str | None,
) -> Execution:
    """Run the hook over the plan's records, if there are any, and collect the artifact.

    A failed hook run results in an artifact with `failure` set, which contains its output and log.

    Raises:
        NotFoundError, CorruptDataError: An input is missing from the archive, or damaged.
        StoreUnavailableError: The archive could not be read.
        HookAborted: The hook cannot be run, over this batch or any other.
    """
    if plan.compute:
        workspace.create()
        plan = stage_inputs(store, plan, workspace)
    if not plan.compute:
        now = datetime.now(UTC)
        run = RunInfo(
            id=plan.hook_run_id(request_id),
            runner=NO_RUNNER,
            started_at=now,
            finished_at=now,
            attempts=0,
            dagster_run_id=dagster_run_id,
        )
        return Execution(plan, carried_artifact(plan, run), None)

    waits = None
    begin_with = _memory_to_begin_with(plan)
    if isinstance(runner, LastingRunner):
        # Before anything is started: from here on the result is taken, though this worker dies.
        waits = register(
            store,
            plan,
            runner.image_of(plan.release.release),
            begin_with=begin_with,
            request_id=request_id,
            dagster_run_id=dagster_run_id,
        )
    try:
        return run_staged(
            plan, runner, monitor, workspace, request_id, dagster_run_id, begin_with=begin_with
        )
    except HookAborted as error:
        may_continue = error.failure.kind == FailureKind.CLUSTER_REFUSED
        if waits is not None and not may_continue:
            store.delete(waits)  # nothing was left running that could answer
        raise


def run_staged(
    plan: ComputePlan,
    runner: HookRunner,
    monitor: RunMonitor,
    workspace: Workspace,
    request_id: str,
    dagster_run_id: str | None,
    *,
    begin_with: Mapping[str, int],
    retry_delay_seconds: float | None = None,
) -> Execution:
    """Run the hook over the staged `workspace`, and collect the artifact.

    Args:
        plan: Has records to compute.
        runner: Makes the attempts.
        monitor: Watches them.
        workspace: Has the inputs, and the output afterwards.
        request_id: Distinguishes this request from others for the same records.
        dagster_run_id: The requesting Dagster run.
        begin_with: Records on which the hook failed before, with the memory for the first attempt.
        retry_delay_seconds: Delay before another attempt, if not the policy's own.

    Raises:
        HookAborted: The hook cannot be run, over this batch or any other.
    """
    declared = plan.definition.release
    request = RunRequest(
        run_id=plan.hook_run_id(request_id),
        release=plan.release.release,
        limits=declared.limits,
        workspace=workspace,
    )
    policy = FailurePolicy(
        retries=declared.retries,
        retry_within_seconds=declared.retry_within_seconds,
        memory_bytes=declared.limits.memory_bytes,
        memory_ceiling_bytes=declared.limits.memory_ceiling_bytes,
    )
    if retry_delay_seconds is not None:
        policy = replace(policy, delay_seconds=retry_delay_seconds)
    # A hook that may run so many times at once is given as many runs by its pool, each with one
    # part at a time.
    limits = PartLimits() if declared.concurrency is None else PartLimits(at_once=1)
    if plan.definition.scope is Scope.BATCH:
        limits = replace(limits, is_divisible=False)
    read: list[DecodedOutput] = []

    def check(output: Path, record_ids: Sequence[str]) -> None:
        read[:] = [read_output(plan, output, record_ids)]

    hook_run = run_in_parts(
        runner,
        request,
        policy,
        monitor,
        limits,
        check=check,
        begin_with=begin_with,
    )
    # the last that was read is the joined output
    decoded = read[0] if read else DecodedOutput(())
    return _collect(plan, hook_run, workspace, run_info(hook_run, dagster_run_id), decoded)


def _memory_to_begin_with(plan: ComputePlan) -> dict[str, int]:
    """Return the first memory limit of records that failed under lower limits."""
    limits = plan.definition.release.limits
    most = granted_limits(limits).memory_bytes
    begin_with = {}
    for record_id, outcome in plan.failed_before.items():
        memory = limits.memory_bytes
        if outcome.kind is OutcomeKind.OUT_OF_MEMORY and outcome.limits is not None:
            # that much was not enough
            memory = max(memory, min(2 * outcome.limits.memory_bytes, most))
        begin_with[record_id] = memory
    return begin_with


def _collect(
    plan: ComputePlan, hook_run: HookRun, workspace: Workspace, run: RunInfo, decoded: DecodedOutput
) -> Execution:
    if hook_run.failure is not None:
        facts = hook_run.failure
        # the decision's reason is the facts', and why there was no further attempt
        reason = facts.reason if hook_run.decision is None else hook_run.decision.reason
        failure = FailureInfo(kind=facts.kind, reason=reason, exit_code=facts.exit_code)
        if isinstance(hook_run.decision, Abort) and facts.kind is not FailureKind.CANCELLED:
            # Nothing was learnt about the batch, and no other would fare better: no entry for it.
            raise HookAborted(f"hook run {run.id}: {facts.describe()}", failure, hook_run)
        artifact = failed_artifact(plan, workspace.output, run, hook_run.log, failure)
    else:
        failed = _failed_outcomes(plan, hook_run)
        artifact = collect_output(
            plan, workspace.output, run, hook_run.log, decoded=decoded, failed=failed
        )
    return Execution(plan, replace(artifact, starts=_starts(hook_run)), hook_run)


def _failed_outcomes(plan: ComputePlan, hook_run: HookRun) -> list[Outcome]:
    granted = granted_limits(plan.definition.release.limits)
    return [
        Outcome(
            record.record_id,
            Status.ERRORED,
            reason=record.reason,
            kind=record.kind,
            is_retryable=record.is_retryable,
            action=plan.actions[record.record_id],
            is_from_output=False,
            limits=granted,
        )
        for record in hook_run.failed_records
    ]


def completion_of_execution(
    execution: Execution,
    manifest: Digest,
    dagster_run_id: str | None,
    status: CompletionStatus | None = None,
) -> Completion:
    """Return the completion of the execution's stored artifact, for the inbox.

    Args:
        execution: What was carried out.
        manifest: Digest of the stored manifest.
        dagster_run_id: The Dagster run that reports it.
        status: The completion's status, if it does not follow from the failure.
    """
    plan, artifact = execution.plan, execution.artifact
    if artifact.failure is not None and artifact.failure.kind == FailureKind.CANCELLED:
        status = status or CompletionStatus.CANCELLED
    return completion_of(
        artifact, manifest, base=plan.base, status=status, dagster_run_id=dagster_run_id
    )


def run_info(hook_run: HookRun, dagster_run_id: str | None) -> RunInfo:
    """Return the provenance of a hook run, over all its starts."""
    results = [start.result for start in hook_run.starts]
    peaks = [r.peak_memory_bytes for r in results if r.peak_memory_bytes is not None]
    return RunInfo(
        id=hook_run.run_id,
        runner=hook_run.runner,
        started_at=hook_run.started_at,
        finished_at=hook_run.finished_at,
        attempts=len(results),
        memory_bytes=max(peaks, default=None),
        node=", ".join(sorted({result.node for result in results})),
        exit_code=hook_run.exit_code,
        dagster_run_id=dagster_run_id,
    )


def _starts(hook_run: HookRun) -> tuple[StartInfo, ...]:
    return tuple(
        StartInfo(
            part=start.part,
            records=start.records,
            attempt=start.attempt,
            started_at=start.result.started_at,
            finished_at=start.result.finished_at,
            memory_limit_bytes=start.memory_limit_bytes,
            ended=ENDED_WELL if start.result.failure is None else start.result.failure.kind.value,
            exit_code=start.result.exit_code,
            memory_bytes=start.result.peak_memory_bytes,
            node=start.result.node,
        )
        for start in hook_run.starts
    )


def log_tail(log: Path | None, max_bytes: int = 4096) -> str:
    """Return the last lines of a hook's log for display."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - max_bytes))
        return file.read().decode(errors="replace")


def reasons_of(plan: ComputePlan) -> Mapping[str, int]:
    """Return counts of the reasons for computing records or not, for display and metadata."""
    return {
        "records": len(plan.batch.records),
        "computed": len(plan.compute),
        "carried": len(plan.carried),
        "not_asked": len(plan.skipped),
        "retried": plan.retried,
        "decoded_again": plan.decoded_again,
    }
