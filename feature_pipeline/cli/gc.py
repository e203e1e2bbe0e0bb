"""`feature-pipeline gc`: blobs that nothing needs are marked, and deleted a grace period later."""

import click

from feature_pipeline.archive import blobs
from feature_pipeline.archive.gc import GcScope, collect_garbage
from feature_pipeline.cli.output import Output, json_option, size
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.verify import progress_of
from feature_pipeline.digest import Digest
from feature_pipeline.errors import InvalidInputError


@click.command()
@click.option("--all", "is_all", is_flag=True, help="All blobs of the archive.")
@click.option(
    "--shard", "shards", multiple=True, help="Blobs whose digest begins with these two hex digits."
)
@click.option("--delete", is_flag=True, help="Mark, and delete what is due. Without: a dry run.")
@click.option(
    "--lost", multiple=True, help="A manifest or batch that is given up: sha256:<digest>."
)
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@json_option
def gc(
    is_all: bool,
    shards: tuple[str, ...],
    delete: bool,
    lost: tuple[str, ...],
    workers: int,
    as_json: bool,
) -> None:
    """Delete blobs that two runs, a week apart, both found to be needed by nothing.

    Without --delete nothing is written and nothing is deleted. Run it with --delete every day or
    week: each run marks what it finds, and deletes what a run at least a week earlier had marked.
    """
    Project.find().load_environment()
    output = Output(as_json)
    if is_all == bool(shards):
        raise InvalidInputError("say what may be collected: --all, or --shard (once or more)")
    scope = GcScope.everything() if is_all else GcScope(frozenset(shards))
    store = open_archive()
    with progress_of(output, "deleting") as progress:
        report = collect_garbage(
            store,
            scope,
            is_dry_run=not delete,
            lost=frozenset(map(Digest.parse, lost)),
            workers=workers,
            progress=progress,
        )
    output.say(f"{report.stored} blobs ({size(report.stored_bytes)}) in {store.uri('')}")
    output.say(f"{report.orphaned} of them ({size(report.orphaned_bytes)}) are needed by nothing")
    if report.first_mark_at is None:
        output.say(f"No mark is {blobs.GRACE.days} days old yet: nothing is due")
    else:
        output.say(
            f"{len(report.due)} ({size(report.due_bytes)}) are due: marked"
            f" {report.first_mark_at:%Y-%m-%d %H:%M} UTC, and unchanged since"
        )
    if delete:
        output.say(
            f"{len(report.deleted)} deleted ({size(report.deleted_bytes)}),"
            f" {len(report.spared)} spared because they were written again"
        )
    else:
        output.say("Dry run: nothing was marked or deleted. --delete does both")
    output.result(report.to_json())
