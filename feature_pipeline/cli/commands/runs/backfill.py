"""`feature-pipeline backfill`: run again what is missing, failed, stale or of an old release."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from feature_pipeline import settings
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.instance import dagster_instance
from feature_pipeline.cli.option_values import SELECTIONS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import project_hooks
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.projections.catalog.database import Database

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from feature_pipeline.orchestration.operations.backfills import BackfillPlan


def backfill(
    names: tuple[str, ...],
    select: str | None,
    batches: tuple[str, ...],
    tables: bool | None,
    dry_run: bool,
    cancel: str | None,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline backfill`."""
    from feature_pipeline.orchestration.operations.backfills import cancel_backfill

    Project.find().load_environment()
    output = Output(as_json)
    with dagster_instance() as instance:
        if cancel is not None:
            cancel_backfill(instance, cancel)
            output.say(f"backfill {cancel} is being cancelled, and its runs with it")
            output.result({"cancelled": cancel})
            return
        if select is None:
            raise InvalidInputError(f"choose the partitions: --select {'|'.join(SELECTIONS)}")
        plan = _plan(instance, output, select, names, batches, tables)
        _show(output, plan)
        launched = None if dry_run or plan.is_empty else _launch(instance, output, plan)
        output.result({**plan.to_json(), "backfill": launched})


def _plan(
    instance: "DagsterInstance",
    output: Output,
    select: str,
    names: Collection[str],
    batches: Collection[str],
    tables: bool | None,
) -> "BackfillPlan":
    from feature_pipeline.orchestration.operations.backfills import (
        Select,
        find_targets,
        plan_backfill,
    )
    from feature_pipeline.orchestration.operations.batch_status import Sources, hook_status

    wanted, store = Select(select), open_archive()
    defined = project_hooks()
    hooks = defined.usable
    for line in defined.wrong_lines():
        output.say(line)
    folders = {(h.definition.dataset, h.definition.name): h.folder for h in hooks}
    targets = find_targets([hook.definition for hook in hooks], names, tables)
    needs_tables = any(target.table for target in targets)
    database = Database(settings.database_url()) if needs_tables else None
    chosen = batches_by_dataset(store, {t.definition.dataset for t in targets}, batches)
    statuses = []
    with output.progress("looking at batches", len(targets)) as steps:
        for target in targets:
            definition = target.definition
            status = hook_status(
                Sources(store, database if target.table else None, instance),
                definition,
                folders[definition.dataset, definition.name],
                batches=chosen and chosen[definition.dataset],
                is_deep=wanted is Select.FAILED,
            )
            statuses.append((target, status))
            steps.advance()
    datasets = {target.definition.dataset for target in targets}
    partitions = {d: frozenset(instance.get_dynamic_partitions(d)) for d in datasets}
    return plan_backfill(wanted, statuses, partitions)


def batches_by_dataset(
    store: BlobStore, datasets: Collection[str], batches: Collection[str]
) -> dict[str, list[str]] | None:
    """Return for each dataset which of `batches` it has; None if none is named.

    Raises:
        NotFoundError: No dataset has one of the named batches.
    """
    if not batches:
        return None
    batches_of: dict[str, list[str]] = {dataset: [] for dataset in datasets}
    for batch in dict.fromkeys(batches):
        having = [dataset for dataset in datasets if log.batch_entries(store, dataset, batch)]
        if not having:
            raise NotFoundError(f"no batch {batch!r} in dataset {' or '.join(sorted(datasets))}")
        for dataset in having:
            batches_of[dataset].append(batch)
    return batches_of


def _show(output: Output, plan: "BackfillPlan") -> None:
    for part in plan.parts:
        output.say(f"{part.key.to_user_string()}: {counted(len(part.batches), 'partition')}")
        output.say("\n".join(f"  {batch}" for batch in part.batches))
    for note in plan.notes:
        output.say(note)
    if plan.is_empty:
        output.say(f"Nothing to do: none of these partitions is {plan.select}.")


def _launch(instance: "DagsterInstance", output: Output, plan: "BackfillPlan") -> str:
    from feature_pipeline.orchestration.operations.backfills import (
        active_backfills,
        is_daemon_running,
        launch_backfill,
    )

    before = active_backfills(instance)
    backfill_id = launch_backfill(instance, plan)
    output.say(f"Backfill {backfill_id} launched: /runs/b/{backfill_id} in the UI.")
    output.say(f"Cancel it there, or with: feature-pipeline backfill --cancel {backfill_id}")
    if not is_daemon_running(instance):
        output.say("No Dagster daemon seems to be running: the backfill waits until one does.")
    if before:
        output.say(f"Launched before and not done yet: {', '.join(before)}")
    return backfill_id
