"""Options and help of `feature-pipeline verify`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.option("--dataset", help="Only this dataset.")
@click.option("--hook", help="Only this hook: its releases and artifacts.")
@click.option("--batch", help="Only this batch.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Read this fraction of the blobs. Logs, manifests and batches are always read.",
)
@click.option("--seed", type=int, help="Read the same sample as an earlier run with this seed.")
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--restore-checksums",
    is_flag=True,
    help="Write right objects again of which the store keeps no checksum.",
)
@json_option
def verify(**arguments: Any) -> None:
    """Read all stored objects again and compare them with their names.

    Also compares the logs with the tables and with Dagster, if they are configured.

    Exits with 0 if everything is right, with 2 if an object is missing, corrupt, lost, unreadable
    or not erased, with 1 if the archive could not be verified at all.
    """
    from feature_pipeline.cli.commands.verify import verify as carry_out

    carry_out(**arguments)
