"""Publish the output of a cancelled hook run as a failed artifact, so that its log keeps it."""

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from feature_pipeline.archive.format.manifest import FailureInfo, RunInfo
from feature_pipeline.compute.assemble_artifact import failed_artifact
from feature_pipeline.compute.execute import Execution
from feature_pipeline.compute.plan import ComputePlan
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.output import RAW_FILES, raw_files
from feature_pipeline.hooks.runner import HookRunner, LastingRunner, Workspace


def cancelled_execution(
    plan: ComputePlan,
    runner: HookRunner,
    workspace: Workspace,
    *,
    started_at: datetime,
    request_id: str,
    dagster_run_id: str | None,
) -> Execution | None:
    """Return the artifact of a run that was cancelled before it ended, to be published.

    It is failed, with kind `cancelled`, and contains the output and log that the hook had written.

    Args:
        plan: What was to be computed.
        runner: Made the attempts, and has stopped the hook.
        workspace: Of the run.
        started_at: When it began.
        request_id: As for `execute_plan`.
        dagster_run_id: The requesting Dagster run.

    Returns:
        None if no hook process had started, or if its results are recovered from where it ran.
    """
    logs = sorted(workspace.root.glob("**/logs/attempt-*.log"), key=_written_at)
    if not logs or isinstance(runner, LastingRunner):
        return None
    for name in RAW_FILES:
        parts = sorted(workspace.root.glob(f"parts/**/out/{name}"))
        if name not in raw_files(workspace.output) and parts:
            _join(parts, workspace.output / name)
    log = workspace.root / "logs" / "cancelled.log"
    _join(logs, log)
    run = RunInfo(
        id=plan.hook_run_id(request_id),
        runner=runner.name,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        attempts=len(logs),
        dagster_run_id=dagster_run_id,
    )
    reason = "the Dagster run was cancelled before the hook ended"
    failure = FailureInfo(kind=FailureKind.CANCELLED, reason=reason, exit_code=None)
    return Execution(plan, failed_artifact(plan, workspace.output, run, log, failure), None)


def _written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _join(sources: Iterable[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as joined:
        for source in sources:
            # A link in the output would name a file of this machine.
            if source.is_file() and not source.is_symlink():
                with source.open("rb") as file:
                    shutil.copyfileobj(file, joined)
