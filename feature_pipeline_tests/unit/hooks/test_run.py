"""The loop over attempts, with a runner that plays a script: what it is asked matters here."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, GiveUp, RuntimeFacts
from feature_pipeline.hooks.run import run_hook
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult, Workspace
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.release import HookRelease, ReleaseDocument

RELEASE = HookRelease.of(ReleaseDocument(dataset="d", hook="h", version="1", command=("x",)))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Script:
    name = "script"

    def __init__(self, *kinds: FailureKind | None, seconds: float = 0) -> None:
        self._kinds = list(kinds)
        self._ended = NOW + timedelta(seconds=seconds)
        self.requests: list[RunRequest] = []

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        self.requests.append(request)
        kind = self._kinds.pop(0)
        memory = request.limits.memory_bytes
        facts = kind and RuntimeFacts(kind, kind.value, memory_limit_bytes=memory)
        return RunResult(0, facts, NOW, self._ended, Path("log"), None, "node")


class Watching:
    def __init__(self, cancelled: Iterable[bool] = ()) -> None:
        self.lines: list[str] = []
        self._cancelled = iter(cancelled)

    def log(self, line: str) -> None:
        self.lines.append(line)

    def is_cancelled(self, *, now: bool = False) -> bool:
        return next(self._cancelled, False)


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    return RunRequest("run", RELEASE, Limits(memory="1Gi"), Workspace(tmp_path))


def test_success_at_once(request_):
    run = run_hook(Script(None), request_, FailurePolicy(), Watching())
    assert (run.failure, run.decision, len(run.starts), run.runner) == (None, None, 1, "script")


def test_attempts_are_numbered_and_memory_grows(request_):
    runner, watching = Script(FailureKind.OUT_OF_MEMORY, FailureKind.UNKNOWN, None), Watching()
    run = run_hook(runner, request_, FailurePolicy(delay_seconds=0), watching)
    assert run.failure is None
    assert [r.attempt for r in runner.requests] == [1, 2, 3]
    assert {r.run_id for r in runner.requests} == {"run"}
    assert [r.limits.memory_bytes for r in runner.requests] == [2**30, 2**31, 2**31]
    assert run.memory_bytes == 2**31
    assert watching.lines == [
        "attempt 1 failed (out_of_memory: out_of_memory); trying again in 0 s with 2Gi of memory",
        "attempt 2 failed (unknown: unknown); trying again in 0 s",
    ]


def test_giving_up_keeps_every_attempt(request_):
    runner = Script(*[FailureKind.NON_ZERO_EXIT] * 2)
    run = run_hook(runner, request_, FailurePolicy(retries=1, delay_seconds=0), Watching())
    assert len(run.starts) == 2
    assert run.failure is run.starts[-1].result.failure
    assert run.decision == GiveUp("non_zero_exit; 2 attempts")


def test_an_exit_is_judged_by_how_long_it_took(request_):
    policy = FailurePolicy(retries=2, delay_seconds=0, retry_within_seconds=60)
    exits = [FailureKind.NON_ZERO_EXIT] * 3
    assert len(run_hook(Script(*exits, seconds=59), request_, policy, Watching()).starts) == 3
    assert len(run_hook(Script(*exits, seconds=61), request_, policy, Watching()).starts) == 1


def test_cancellation_between_attempts_ends_the_wait(request_):
    runner = Script(FailureKind.UNKNOWN)
    watching = Watching([False, True])
    run = run_hook(runner, request_, FailurePolicy(delay_seconds=3600), watching)
    assert run.failure is not None
    assert run.failure.kind is FailureKind.CANCELLED
    assert isinstance(run.decision, Abort)
