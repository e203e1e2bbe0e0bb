"""Options and help of `feature-pipeline demo`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the servers keep their data; .feature_pipeline in the project when absent.",
)
@json_option
def demo(**arguments: Any) -> None:
    """Compute features of real structures, archive them and load the tables.

    Starts S3 and PostgreSQL from wheels on loopback, runs every step through Dagster, and prints
    the results and the proof that the tables equal the archive. A second run computes nothing.
    """
    from feature_pipeline.cli.commands.demo import demo as carry_out

    carry_out(**arguments)
