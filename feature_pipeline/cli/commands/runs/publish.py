"""`feature-pipeline publish`: publish the output of a hook that ran elsewhere."""

import dataclasses
import os
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.manifest import RunInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.publish import (
    Artifact,
    publish_and_enqueue,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import find_hook
from feature_pipeline.compute.assemble_artifact import collect_output
from feature_pipeline.compute.plan import ComputePlan, plan_run
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.hooks.json_lines import read_lines
from feature_pipeline.hooks.output import ERRORS, FEATURES, REJECTIONS, SINGLE_FEATURES
from feature_pipeline.model.outcomes import Status
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.regular_files import open_regular

OUTCOME_FILES: Final = (FEATURES, SINGLE_FEATURES, REJECTIONS, ERRORS)
"""Files of the contract that have outcomes of records."""

_UNREGISTERED: Final = 0


def publish(
    folder: Path,
    hook: str,
    batch: str,
    dataset: str | None,
    log_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline publish`."""
    Project.find().load_environment()
    output = Output(as_json)
    check_is_output(folder)
    defined = find_hook(hook, dataset)
    store = open_archive()
    definition = defined.definition
    release = definition.hook_release(defined.folder)
    records = log.read_batch(store, definition.dataset, batch)
    # Registered once the output was found good: a refusal changes nothing.
    unregistered = ReleaseEntry(_UNREGISTERED, release)
    plan = plan_run(store, definition, unregistered, records, force=True)
    now = datetime.now(UTC)
    run = RunInfo(
        id=plan.hook_run_id(f"publish-{uuid.uuid4().hex}"),
        runner="external",
        started_at=now,
        finished_at=now,
        exit_code=0,
    )
    artifact = collect_output(plan, folder, run, log_file)
    check_is_about(folder, artifact)
    if not force:
        check_replaces_no_answer(store, plan, artifact)
    entry = log.register_release(store, release, definition.code_files(defined.folder))

    artifact = dataclasses.replace(artifact, release=entry)
    published, _ = publish_and_enqueue(
        store, artifact, partial(completion_of, artifact, base=plan.base)
    )
    counts, notes = published.manifest.counts, published.manifest.notes
    output.table(
        f"published {definition.name} of batch {batch}",
        ["records", "passed", "rejected", "errored", "rows"],
        [[counts.records, counts.passed, counts.rejected, counts.errored, counts.rows]],
    )
    for note in notes:
        output.say(f"note: {note}")
    output.say(f"manifest {published.manifest_digest}; accepted when Dagster's daemon next runs")
    output.result(
        {
            "id": run.id,
            "manifest": str(published.manifest_digest),
            "counts": dataclasses.asdict(counts),
            "notes": list(notes),
        }
    )


def check_is_output(folder: Path) -> None:
    """Check that `folder` has at least one file of the contract.

    Raises:
        InvalidInputError: It has none. The message names its content, and a subfolder that has one.
    """
    if any(os.path.lexists(folder / name) for name in OUTCOME_FILES):
        return
    there = sorted(path.name for path in folder.iterdir())
    below = [
        name for name in there if any((folder / name / each).is_file() for each in OUTCOME_FILES)
    ]
    hint = f"publish {folder / below[0]} instead" if below else "publish the folder of OSA_OUT"
    raise InvalidInputError(
        f"{folder} has none of {', '.join(OUTCOME_FILES)}, so it is not a hook's output; it has"
        f" {first_few(there) or 'nothing'}: {hint}"
    )


def check_is_about(folder: Path, artifact: Artifact) -> None:
    """Check that the output names a record of the batch, or no record at all.

    Raises:
        InvalidInputError: It names only records that are not in the batch.
    """
    if any(outcome.status is not Status.ERRORED for outcome in artifact.outcomes):
        return
    named: dict[str, None] = {}
    for name in (FEATURES, REJECTIONS, ERRORS):
        if (folder / name).is_file():
            with open_regular(folder / name, follow_links=False) as file:
                named |= dict.fromkeys(line.record_id for line in read_lines(name, file))
    if named and named.keys().isdisjoint(outcome.record_id for outcome in artifact.outcomes):
        raise InvalidInputError(
            f"{folder} names no record of batch {artifact.batch.key!r}, but {first_few(named)}: is"
            " it the output of another batch?"
        )


def check_replaces_no_answer(store: BlobStore, plan: ComputePlan, artifact: Artifact) -> None:
    """Check that no passed or rejected record would be replaced by an error.

    Raises:
        ConflictError: A record would be, or the current answers cannot be read. The message names
            some records with their errors.
    """
    if plan.previous_digest is None:
        return
    try:
        previous = read.read_manifest(store, plan.previous_digest)
        outcomes = read.read_artifact_outcomes(store, previous)
    except (NotFoundError, CorruptDataError) as error:
        raise ConflictError(
            f"the outcomes that {artifact.hook!r} has for batch {artifact.batch.key!r} cannot"
            f" be read ({error}), so it is unknown what this would replace: publish with --force"
            " to replace them anyway"
        ) from error
    answered = {each.record_id for each in outcomes if each.status is not Status.ERRORED}
    lost = [
        outcome
        for outcome in artifact.outcomes
        if outcome.status is Status.ERRORED and outcome.record_id in answered
    ]
    if lost:
        raise ConflictError(
            f"batch {artifact.batch.key!r}: {len(lost)} of"
            f" {counted(len(artifact.outcomes), 'record')} with an outcome of {artifact.hook!r}"
            " would have an error instead:"
            f" {first_few(outcome.record_id for outcome in lost)} ({lost[0].reason}); publish with"
            " --force if that is right"
        )
