"""The feature asset of a hook: one artifact per batch."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.hooks.runner import Workspace
from feature_pipeline.hooks.work_folders import Question, WorkFolder
from feature_pipeline.model.definition import Compute, HookDefinition
from feature_pipeline.model.release import HookRelease
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.orchestration import conditions
from feature_pipeline.orchestration.assets.wrong_definitions import WRONG_DEFINITION_FAILURE
from feature_pipeline.orchestration.events.data_versions import feature_code_version
from feature_pipeline.orchestration.events.metadata import (
    code_references,
    column_schema,
    failure_metadata,
    freshness_policy,
)
from feature_pipeline.orchestration.keys import (
    REQUEST_TAG,
    batches_partitions,
    features_key,
    pool_of,
    records_key,
)
from feature_pipeline.orchestration.resources import ArchiveResource, HookRunnerResource

if TYPE_CHECKING:
    from feature_pipeline.archive.claims import Claim
    from feature_pipeline.compute.execute import Execution, HookAborted
    from feature_pipeline.compute.plan import ComputePlan

DEFINITION_METADATA = "feature_pipeline/definition"
FOLDER_METADATA = "feature_pipeline/folder"
"""Key of the definition and its folder of code files in an asset's metadata."""
IO_MANAGER_KEY = "features_io_manager"
HOOK_TAG = "feature_pipeline/hook"
_NO_COLUMNS = "No columns: the hook passes or rejects records."
_ELSEWHERE = (
    "Computed elsewhere: another system runs this hook and publishes its output; no run of it can"
    " be requested here."
)


class HookRunConfig(dg.Config):
    """The run config of a feature asset."""

    force: bool = Field(default=False, description="Compute every record again.")
    # A default of this form is offered in the launchpad; a factory's is not.
    force_records: list[str] = Field(default=[], description="Ids of records to compute again.")
    preview: bool = Field(
        default=True,
        description="Show the first rows in the metadata, unless the definition says not to.",
    )


@dataclass(slots=True)
class ComputedFeatures:
    """The op's output for the IO manager: an artifact to publish, or None if none is needed."""

    plan: "ComputePlan"
    execution: "Execution | None"
    """None: the current artifact is already equal."""
    request_id: str
    show_preview: bool
    workspace: WorkFolder | None = None
    """Holds the raw files until they are published."""
    claim: "Claim | None" = None
    """On what was computed, until its artifact is accepted."""


class DagsterMonitor:
    """Passes the hook's log lines to the step's captured output, and reads the run's status."""

    CHECK_SECONDS = 2.0

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._checked_at = 0.0
        self._is_cancelled = False

    def log(self, line: str) -> None:
        """Write one line to the captured output: an event per line would flood the storage."""
        sys.stdout.write(line + "\n")

    def is_cancelled(self, *, now: bool = False) -> bool:
        """Return whether cancellation of this run was requested, at most `CHECK_SECONDS` ago."""
        at = time.monotonic()
        if not self._is_cancelled and (now or at - self._checked_at >= self.CHECK_SECONDS):
            self._checked_at = at
            self._is_cancelled = is_cancelled(self._context.instance, self._context.run.run_id)
        return self._is_cancelled


def is_cancelled(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether cancellation of the run was requested."""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status in {
        dg.DagsterRunStatus.CANCELING,
        dg.DagsterRunStatus.CANCELED,
    }


def _request_id(context: dg.AssetExecutionContext, config: HookRunConfig) -> str:
    """Return what distinguishes this request from an earlier one for the same records.

    Empty, so that a run that follows a dead one attaches to the container or Job which that one
    started: a hook run that ended, well or not, has moved the log on and with it the run id. A
    forced run has a request id of its own; a retry or a repetition of it has the same.
    """
    if not (config.force or config.force_records):
        return ""
    run = context.run
    return run.tags.get(REQUEST_TAG) or run.root_run_id or run.run_id


def _planned(plan: "ComputePlan") -> str:
    """Describe the plan for the log, before it is carried out."""
    summary = f"{len(plan.compute)} to compute"
    if plan.retried:
        summary += f" ({plan.retried} of them again, after an error that may pass)"
    summary += f", {len(plan.carried)} to carry over"
    if plan.decoded_again:
        summary += f" ({plan.decoded_again} of them to be read again from raw output)"
    return summary


def _aborted(error: "HookAborted") -> dg.Failure:
    facts = error.hook_run.failure
    tail = "" if facts is None else "\n".join(facts.log_tail)
    return dg.Failure(
        description=str(error),
        metadata=failure_metadata(error.hook_run, error.failure, tail),
        allow_retries=False,
    )


def _publish_cancelled(
    context: dg.AssetExecutionContext, store: BlobStore, cancelled: "Execution"
) -> None:
    """Append a cancelled run to its batch's log, without waiting for an unavailable store.

    Dagster gives an interrupted worker little time.
    """
    from feature_pipeline.compute.publish_run import publish_with_retry

    try:
        stored_run = publish_with_retry(
            store,
            cancelled,
            context.run.run_id,
            context.log.warning,
            lambda: True,
            timeout_seconds=0.0,
        )
    except FeaturePipelineError as error:
        context.log.warning("the output of the cancelled hook run is not in the archive: %s", error)
        return
    context.log.info(
        "hook run %s was cancelled; its output and log are kept in manifest %s",
        stored_run.entry.completion,
        stored_run.published.manifest_digest,
    )


def _feature_spec(
    definition: HookDefinition, folder: Path, release: HookRelease, code: Mapping[str, Path]
) -> dg.AssetSpec:
    """Return what Dagster shows of the feature asset, whether or not it can be run here."""
    dataset, hook, columns = definition.dataset, definition.name, definition.feature.columns
    notes = [
        definition.description,
        None if columns else _NO_COLUMNS,
        _ELSEWHERE if definition.compute is Compute.ELSEWHERE else None,
    ]
    return dg.AssetSpec(
        key=features_key(dataset, hook),
        partitions_def=batches_partitions(dataset),
        deps=[records_key(dataset), *(features_key(dataset, name) for name in definition.inputs)],
        code_version=feature_code_version(release, columns, definition.feature.cardinality.value),
        group_name=dataset,
        kinds={"s3", "parquet"},
        owners=list(definition.owners),
        freshness_policy=freshness_policy(definition),
        tags={HOOK_TAG: hook},
        description="\n\n".join(note for note in notes if note),
        metadata={
            DEFINITION_METADATA: dg.MetadataValue.json(definition.model_dump(mode="json")),
            FOLDER_METADATA: dg.MetadataValue.path(folder),
            "release": f"{release.document.version} ({release.digest.short})",
            **({"dagster/column_schema": column_schema(columns)} if columns else {}),
            **code_references(code.values()),
        },
    )


def _batch_of(context: dg.AssetExecutionContext) -> str:
    """Return the run's batch.

    A backfill that is planned while the definition cannot be used has one run of all its batches,
    and the definition may be corrected before that begins. It is then repeated, batch by batch.
    """
    batches: list[str] = list(context.partition_keys)
    if len(batches) == 1:
        return batches[0]
    raise dg.Failure(
        description=f"this run is of {counted(len(batches), 'batch')} ({first_few(batches)}), as"
        " runs are while the definition cannot be used, and a hook has one run for each batch:"
        " they are requested again one by one",
        metadata={"failure_kind": WRONG_DEFINITION_FAILURE},
        allow_retries=False,
    )


def feature_asset(definition: HookDefinition, folder: Path) -> dg.AssetsDefinition:
    """Return the asset `<dataset>/features/<hook>`, one partition per batch, one partition per run.

    Args:
        folder: The folder that the definition's code files are relative to.
    """
    release = definition.hook_release(folder)
    code = definition.code_files(folder)
    dataset, hook = definition.dataset, definition.name
    spec = _feature_spec(definition, folder, release, code)
    if definition.compute is Compute.ELSEWHERE:
        # An asset without an op: Dagster offers no run of it, and no backfill can start one.
        return dg.AssetsDefinition(specs=[spec])

    @dg.asset(
        key=spec.key,
        partitions_def=spec.partitions_def,
        deps=[dep.asset_key for dep in spec.deps],
        io_manager_key=IO_MANAGER_KEY,
        code_version=spec.code_version,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        automation_condition=conditions.condition_of(definition.compute),
        pool=pool_of(dataset, hook),
        group_name=spec.group_name,
        kinds=set(spec.kinds),
        owners=list(spec.owners),
        freshness_policy=spec.freshness_policy,
        tags={HOOK_TAG: hook},
        description=spec.description,
        metadata=spec.metadata,
    )
    def compute_features(
        context: dg.AssetExecutionContext,
        config: HookRunConfig,
        archive: ArchiveResource,
        hook_runner: HookRunnerResource,
    ) -> ComputedFeatures:
        from feature_pipeline.compute.cancelled import cancelled_execution
        from feature_pipeline.compute.execute import HookAborted, execute_plan
        from feature_pipeline.compute.plan import plan_run
        from feature_pipeline.compute.plan_claimed import plan_claimed

        batch = _batch_of(context)
        store = archive.store()
        registered = log.register_release(store, release, code)

        def plan_now() -> "ComputePlan":
            return plan_run(
                store,
                definition,
                registered,
                log.read_batch(store, dataset, batch),
                force=config.force,
                force_records=config.force_records,
            )

        plan, claim = plan_claimed(
            store,
            plan_now,
            context.log.info,
            force=config.force,
            force_records=config.force_records,
        )
        context.log.info(
            "batch %s under release %s: %d records: %s",
            plan.batch.key,
            release.document.version,
            len(plan.batch.records),
            _planned(plan),
        )
        show_preview = config.preview and definition.preview
        if plan.is_unchanged:
            return ComputedFeatures(plan, None, context.run.run_id, show_preview)
        folders = hook_runner.work_folders(archive)
        with folders.naming_full_disk(), ExitStack() as cleanup:
            cleanup.callback(claim.release)
            runner, monitor = hook_runner.runner(archive), DagsterMonitor(context)
            request_id, started_at = _request_id(context, config), datetime.now(UTC)
            question = Question(
                run_id=plan.hook_run_id(request_id),
                dataset=dataset,
                hook=hook,
                batch=plan.batch.key,
                base=plan.base,
                runner=runner.name,
            )
            workspace = folders.open(hook, question)
            execution = None
            try:
                execution = execute_plan(
                    store,
                    plan,
                    runner,
                    monitor,
                    Workspace(workspace.path),
                    request_id=request_id,
                    dagster_run_id=context.run.run_id,
                )
            except HookAborted as error:
                raise _aborted(error) from error
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
                if monitor.is_cancelled(now=True):
                    cancelled = cancelled_execution(
                        plan,
                        runner,
                        Workspace(workspace.path),
                        started_at=started_at,
                        request_id=request_id,
                        dagster_run_id=context.run.run_id,
                    )
                    if cancelled is not None:
                        _publish_cancelled(context, store, cancelled)
                else:
                    # Its containers may keep running, and the next worker of this batch attaches to
                    # them.
                    claim.abandon()
                raise
            finally:
                if execution is None:
                    workspace.cleanup()
            cleanup.pop_all()
        return ComputedFeatures(plan, execution, context.run.run_id, show_preview, workspace, claim)

    return compute_features
