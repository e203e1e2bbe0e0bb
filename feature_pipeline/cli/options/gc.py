"""Options and help of `feature-pipeline gc`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.option("--all", "is_all", is_flag=True, help="All blobs of the archive.")
@click.option(
    "--shard", "shards", multiple=True, help="Blobs whose digest begins with these two hex digits."
)
@click.option(
    "--delete",
    is_flag=True,
    help="Mark unneeded blobs and delete those that are due. Default: a dry run.",
)
@click.option(
    "--lost", multiple=True, help="A manifest or batch that is given up: sha256:<digest>."
)
@click.option(
    "--new-orphans",
    type=click.IntRange(0),
    default=0,
    help="So many blobs may newly be needed by nothing, even if that is a mass of them.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@json_option
def gc(**arguments: Any) -> None:
    """Delete blobs that two runs, at least a week apart, both found unneeded.

    Without --delete, nothing is written or deleted. Run it with --delete every day or week: each
    run marks unneeded blobs, and deletes those that a run at least a week earlier had marked.

    Deletes nothing and exits with 2 while an object that may name blobs is damaged or missing, or
    if far more blobs than before are unneeded.
    """
    from feature_pipeline.cli.commands.gc import gc as carry_out

    carry_out(**arguments)
