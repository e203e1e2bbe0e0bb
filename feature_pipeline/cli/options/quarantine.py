"""Options and help of `feature-pipeline quarantine`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--requeue", is_flag=True, help="Return these entries to the inbox unchanged.")
@click.option(
    "--discard",
    "is_discarded",
    is_flag=True,
    help="Delete these entries; gc then deletes what only they name.",
)
@click.option("--all", "is_all", is_flag=True, help="All quarantined entries.")
@json_option
def quarantine(**arguments: Any) -> None:
    """List quarantined entries with their reasons; with --requeue, retry IDS.

    Correct the cause first: submit the batch, register the release, or lift the withdrawal. If an
    entry cannot be read, shows the others and exits with 2.
    """
    from feature_pipeline.cli.commands.quarantine import quarantine as carry_out

    carry_out(**arguments)
