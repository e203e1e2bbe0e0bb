"""Run a release over a workspace: repeat attempts until a verdict, or until the policy gives up."""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from feature_pipeline.hooks.failure import (
    Abort,
    FailureKind,
    FailurePolicy,
    GiveUp,
    Retry,
    RuntimeFacts,
)
from feature_pipeline.hooks.output_folder import problem_of
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult
from feature_pipeline.model.outcomes import OutcomeKind
from feature_pipeline.model.text.quantities import format_size

_TICK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the hook's program: an attempt over the whole batch or over a part of it.

    `part` is empty for the whole; part 2 is divided into 2.1 and 2.2.
    """

    part: str
    records: int
    attempt: int
    memory_limit_bytes: int
    result: RunResult


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A record without output, in a run that gave a verdict on others."""

    record_id: str
    kind: OutcomeKind
    reason: str
    is_retryable: bool = False


@dataclass(frozen=True, slots=True)
class HookRun:
    """Every start of one hook run.

    `failure` is None if there is a verdict; otherwise the reason, or that the run was cancelled
    between two attempts. `decision` is the policy's. `log` is the output of all starts.
    `failed_records` are records that have no output although there is a verdict.
    """

    run_id: str
    runner: str
    starts: tuple[Start, ...]
    failure: RuntimeFacts | None
    decision: GiveUp | Abort | None
    log: Path
    failed_records: tuple[FailedRecord, ...] = ()

    @property
    def exit_code(self) -> int | None:
        """Exit status of the hook; 0 if it gave a verdict."""
        return 0 if self.failure is None else self.failure.exit_code

    @property
    def memory_bytes(self) -> int:
        """The largest memory limit of a start."""
        return max(start.memory_limit_bytes for start in self.starts)

    @property
    def started_at(self) -> datetime:
        """Time of the first start."""
        return min(start.result.started_at for start in self.starts)

    @property
    def finished_at(self) -> datetime:
        """End of the last start."""
        return max(start.result.finished_at for start in self.starts)


def run_hook(
    runner: HookRunner,
    request: RunRequest,
    policy: FailurePolicy,
    monitor: RunMonitor,
    *,
    part: str = "",
    records: int = 0,
) -> HookRun:
    """Run the hook as often as `policy` allows; the workspace has the last attempt's output.

    Args:
        part: Name of the part of the batch in the workspace, for the record.
        records: Number of its records.

    Raises:
        BaseException: Any interruption of the wait; the hook is stopped before.
    """
    starts: list[Start] = []
    failures: list[RuntimeFacts] = []

    def ended(failure: RuntimeFacts | None, decision: GiveUp | Abort | None) -> HookRun:
        log = starts[-1].result.log
        return HookRun(request.run_id, runner.name, tuple(starts), failure, decision, log)

    while True:
        result = _checked(request, runner.run(request, monitor))
        for attempt in (*_lost(result), result):
            memory = request.limits.memory_bytes
            starts.append(Start(part, records, request.attempt, memory, attempt))
        if result.failure is None:
            return ended(None, None)
        decision = policy.decide(result.failure, failures, seconds=result.seconds)
        failures.append(result.failure)
        if not isinstance(decision, Retry):
            return ended(result.failure, decision)
        _log_retry(monitor, request, result.failure, decision)
        if not _wait(decision.delay_seconds, monitor):
            cancelled = RuntimeFacts(FailureKind.CANCELLED, "cancelled before another attempt")
            return ended(cancelled, Abort(cancelled.reason))
        request = _next(request, decision)


def _checked(request: RunRequest, result: RunResult) -> RunResult:
    """Return the result; an attempt whose output is unreadable or too large counts as failed.

    This is decided here alone, for every runner.
    """
    limits = request.limits
    if result.failure is not None:
        return result
    problem = problem_of(request.workspace.output, limits.scratch_bytes)
    if problem is None:
        return result
    kind, reason = problem
    facts = RuntimeFacts(
        kind, reason, exit_code=result.exit_code, memory_limit_bytes=limits.memory_bytes
    )
    return replace(result, failure=facts)


def _lost(result: RunResult) -> list[RunResult]:
    """Return starts whose end no worker saw, with the next one's time as their end."""
    reason = "its worker died, and it could not be attached to"
    facts = RuntimeFacts(FailureKind.WORKER_DIED, reason)
    begun = [*result.lost_starts, result.started_at]
    return [
        replace(
            result,
            exit_code=None,
            failure=facts,
            started_at=began,
            finished_at=max(began, ended),
            peak_memory_bytes=None,
            lost_starts=(),
        )
        for began, ended in pairwise(begun)
    ]


def _next(request: RunRequest, decision: Retry) -> RunRequest:
    limits = request.limits
    if decision.memory_bytes is not None:
        limits = limits.with_memory(decision.memory_bytes)
    return replace(request, attempt=request.attempt + 1, limits=limits)


def _log_retry(
    monitor: RunMonitor, request: RunRequest, failure: RuntimeFacts, decision: Retry
) -> None:
    memory = ""
    if decision.memory_bytes is not None:
        memory = f" with {format_size(decision.memory_bytes)} of memory"
    monitor.log(
        f"attempt {request.attempt} failed ({failure.kind.value}: {failure.reason}); "
        f"trying again in {decision.delay_seconds:g} s{memory}"
    )


def _wait(seconds: float, monitor: RunMonitor) -> bool:
    """Wait; return False as soon as the run is cancelled."""
    end = time.monotonic() + seconds
    while not monitor.is_cancelled():
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _TICK_SECONDS))
    return False
