"""Run one release over one batch: attempts until there is a verdict or the policy has enough."""

import time
from dataclasses import dataclass, replace

from feature_pipeline.hooks.failure import (
    Abort,
    FailureKind,
    FailurePolicy,
    GiveUp,
    Retry,
    RuntimeFacts,
)
from feature_pipeline.hooks.quantities import format_size
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult

_TICK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HookRun:
    """Every attempt of one hook run.

    `failure` is None if the last attempt gave a verdict; else the facts of that attempt, or that
    the run was cancelled between two. `decision` says what the policy made of it.
    """

    run_id: str
    runner: str
    attempts: tuple[RunResult, ...]
    failure: RuntimeFacts | None
    decision: GiveUp | Abort | None
    memory_bytes: int
    """The memory limit of the last attempt."""

    @property
    def last(self) -> RunResult:
        """The last attempt: its output is what the workspace holds."""
        return self.attempts[-1]


def run_hook(
    runner: HookRunner, request: RunRequest, policy: FailurePolicy, monitor: RunMonitor
) -> HookRun:
    """Run the hook as often as `policy` says; the workspace holds the last attempt's output.

    Raises:
        BaseException: Whatever interrupts the wait; the hook is stopped before.
    """
    attempts: list[RunResult] = []
    failures: list[RuntimeFacts] = []
    while True:
        result = runner.run(request, monitor)
        attempts.append(result)
        if result.failure is None:
            return _ended(runner, request, attempts, None, None)
        decision = policy.decide(result.failure, failures)
        failures.append(result.failure)
        if not isinstance(decision, Retry):
            return _ended(runner, request, attempts, result.failure, decision)
        _announce(monitor, request, result.failure, decision)
        if not _wait(decision.delay_seconds, monitor):
            cancelled = RuntimeFacts(FailureKind.CANCELLED, "cancelled before another attempt")
            return _ended(runner, request, attempts, cancelled, Abort(cancelled.reason))
        request = _next(request, decision)


def _ended(
    runner: HookRunner,
    request: RunRequest,
    attempts: list[RunResult],
    failure: RuntimeFacts | None,
    decision: GiveUp | Abort | None,
) -> HookRun:
    memory = request.limits.memory_bytes
    return HookRun(request.run_id, runner.name, tuple(attempts), failure, decision, memory)


def _next(request: RunRequest, decision: Retry) -> RunRequest:
    limits = request.limits
    if decision.memory_bytes is not None:
        limits = limits.with_memory(decision.memory_bytes)
    return replace(request, attempt=request.attempt + 1, limits=limits)


def _announce(
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
    """Wait; False as soon as the monitor says that the run is cancelled."""
    end = time.monotonic() + seconds
    while not monitor.is_cancelled():
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _TICK_SECONDS))
    return False
