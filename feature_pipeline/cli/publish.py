"""`feature-pipeline publish`: the finished output of a hook that ran elsewhere."""

import dataclasses
import uuid
from datetime import UTC, datetime
from pathlib import Path

import click

from feature_pipeline.archive import log
from feature_pipeline.archive.manifest import RunInfo
from feature_pipeline.archive.publish import (
    Completion,
    CompletionStatus,
    announce,
    find_lost,
    publish_artifact,
)
from feature_pipeline.cli.hooks import find_hook
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.compute.collect import collect_output
from feature_pipeline.compute.plan import plan_run


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hook", required=True, help="The hook that wrote it.")
@click.option("--batch", required=True, help="The batch it was given, whole.")
@click.option("--dataset", help="The hook's dataset, if hooks of two datasets have this name.")
@click.option("--log", "log_file", type=click.Path(exists=True, path_type=Path), help="Its log.")
@json_option
def publish(
    folder: Path, hook: str, batch: str, dataset: str | None, log_file: Path | None, as_json: bool
) -> None:
    """Publish FOLDER, what a hook left in OSA_OUT after exiting with status 0.

    The output is taken to be the hook's release as declared now. Nothing of Dagster needs to run:
    the result is durable when the command ends, and is accepted when the daemon runs.
    """
    Project.find().load_environment()
    output = Output(as_json)
    found = find_hook(hook, dataset)
    store = open_archive()
    definition = found.definition
    release = log.register_release(
        store, definition.hook_release(found.folder), definition.code_files(found.folder)
    )
    records = log.read_batch(store, definition.dataset, batch)
    plan = plan_run(store, definition, release, records, force=True)
    now = datetime.now(UTC)
    run = RunInfo(
        id=plan.hook_run_id(f"publish-{uuid.uuid4().hex}"),
        runner="external",
        started_at=now,
        finished_at=now,
        exit_code=0,
    )
    artifact = collect_output(plan, folder, run, log_file)
    published = publish_artifact(store, artifact)
    completion = Completion(
        id=run.id,
        dataset=definition.dataset,
        hook=definition.name,
        batch=batch,
        release_seq=release.seq,
        release_digest=release.release.digest,
        base=plan.base,
        manifest=published.manifest_digest,
        status=CompletionStatus.SUCCEEDED,
    )
    announce(store, completion)
    if find_lost(store, published.relied_upon):
        publish_artifact(store, artifact)
    counts = published.manifest.counts
    output.table(
        f"published {definition.name} of batch {batch}",
        ["records", "passed", "rejected", "errored", "rows"],
        [[counts.records, counts.passed, counts.rejected, counts.errored, counts.rows]],
    )
    for note in published.manifest.notes:
        output.say(f"note: {note}")
    output.say(f"manifest {published.manifest_digest}; accepted when Dagster's daemon next runs")
    output.result(
        {
            "id": run.id,
            "manifest": str(published.manifest_digest),
            "counts": dataclasses.asdict(counts),
        }
    )
