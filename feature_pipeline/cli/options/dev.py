"""Options and help of `feature-pipeline dev`."""

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the servers keep their data; .feature_pipeline in the project when absent.",
)
def dev(**arguments: Any) -> None:
    """Run S3, PostgreSQL, and Dagster's webserver and daemon on loopback until Ctrl-C.

    Writes every setting to .env, so that plain `dagster` and `dg` commands work in another
    terminal. Restarts a server that exits.
    """
    from feature_pipeline.cli.commands.dev import dev as carry_out

    carry_out(**arguments)
