"""Recover the result of a hook run whose worker died: publish and enqueue it without a new run.

The worker's own code runs again with the same plan, parts, policy and decisions, but reads the
stored attempts instead of starting the hook. So the artifact is the one that the worker would have
made. Idempotent.
"""

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from feature_pipeline.archive import publish
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.publish import CompletionStatus
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.execute import HookAborted, completion_of_execution, run_staged
from feature_pipeline.compute.in_flight import InFlightRun
from feature_pipeline.compute.plan import ComputePlan, PlanBasis, plan_run
from feature_pipeline.compute.pod_transfer import S3Results
from feature_pipeline.compute.stage_input import outline_inputs
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.runner import SilentMonitor, Workspace
from feature_pipeline.hooks.runners.kubernetes.results import NotPublishedError, PublishedResults
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import AttemptKey
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.parallel import map_threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The run's completion is in the inbox."""

    inbox_id: str


@dataclass(frozen=True, slots=True)
class AlreadyLogged:
    """The batch's log has the run's completion: another process recovered it."""


@dataclass(frozen=True, slots=True)
class NotPublished:
    """An attempt has no result so far; its Job still runs, or a further attempt is due."""

    attempt: AttemptKey


@dataclass(frozen=True, slots=True)
class NotUsable:
    """The results can never become an artifact of the plan."""

    reason: str


Recovery = Enqueued | AlreadyLogged | NotPublished | NotUsable


def recover_results(
    store: BlobStore,
    run: InFlightRun,
    folder: Path | None = None,
    *,
    is_cancelled: bool = False,
) -> Recovery:
    """Publish and announce the run's results, if all of them exist. Idempotent.

    Starts nothing and waits for nothing. A run whose attempts all failed is announced as failed, as
    its worker would have done; one that the policy would continue is left to another run.

    Args:
        store: The archive, with the pods' uploads.
        run: The in-flight run.
        folder: An empty folder to download into; by default a temporary one of the system's.
        is_cancelled: Whether the run was cancelled: its result becomes history.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: Nothing is known; call it again.
    """
    entries = log.read_log(store, run.dataset, run.hook, run.batch)
    if any(entry.completion == run.id for entry in entries):
        return AlreadyLogged()
    try:
        plan = _plan(store, run)
    except (InvalidInputError, NotFoundError, CorruptDataError) as error:
        return NotUsable(str(error))
    if plan.hook_run_id(run.request_id) != run.id:
        return NotUsable(
            f"batch {run.batch!r} of dataset {run.dataset!r} has changed since hook run"
            f" {run.id} was planned: a record was erased, or a blob that was carried over is lost"
        )
    with ExitStack() as cleanup:
        if folder is None:
            scratch = tempfile.TemporaryDirectory(prefix=f"{run.hook}-")
            folder = Path(cleanup.enter_context(scratch))
        workspace = Workspace(folder)
        workspace.create()
        outline_inputs(plan, workspace)
        try:
            execution = run_staged(
                plan,
                PublishedResults(S3Results(store), run.image),
                SilentMonitor(),
                workspace,
                run.request_id,
                run.dagster_run_id,
                begin_with=run.begin_with,
                retry_delay_seconds=0.0,
            )
        except NotPublishedError as error:
            return NotPublished(error.attempt)
        except HookAborted as error:
            return NotUsable(str(error))
        status = CompletionStatus.CANCELLED if is_cancelled else None
        _, completion = publish.publish_and_enqueue(
            store,
            execution.artifact,
            # Its pods published it; the sensor comes by later.
            lambda manifest: completion_of_execution(
                execution, manifest, run.dagster_run_id, status
            ).as_published(execution.artifact.run.finished_at),
        )
    logger.info("recovered the results of hook run %s over batch %r", run.id, run.batch)
    return Enqueued(completion.inbox_id)


def is_published(store: BlobStore, attempt: AttemptKey) -> bool:
    """Return whether the attempt's pod has left a result."""
    return S3Results(store).is_there(attempt)


def remove_uploads(store: BlobStore, run_id: str) -> None:
    """Remove the inputs and outputs of a hook run's pods. Idempotent.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: Some may still exist; call it again.
    """
    keys = [info.key for info in store.list_objects(layout.uploads(run_id))]
    map_threads(store.delete, keys)


def _plan(store: BlobStore, run: InFlightRun) -> ComputePlan:
    """Return the worker's plan: the same records, on the same log and inputs."""
    try:
        definition = HookDefinition.model_validate(run.definition)
    except ValidationError as error:
        raise InvalidInputError(f"hook run {run.id}: its definition: {error}") from error
    releases = log.releases(store, run.dataset, run.hook)
    release = next((entry for entry in releases if entry.seq == run.release_seq), None)
    if release is None:
        raise NotFoundError(f"hook {run.hook!r} has no release {run.release_seq}")
    return plan_run(
        store,
        definition,
        release,
        log.read_batch(store, run.dataset, run.batch),
        force=run.records is None,
        force_records=run.records or (),
        basis=PlanBasis(run.base, run.inputs, run.sources),
    )
