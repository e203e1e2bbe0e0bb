"""Options and help of `feature-pipeline init`."""

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
def init(**arguments: Any) -> None:
    """Create a project in FOLDER (default: the working directory).

    The project has `defs/` for your hooks, `workspace.yaml` and `dagster.yaml` for Dagster, and in
    `.env` the setting that names `defs/`. Existing files are not replaced.
    """
    from feature_pipeline.cli.commands.init import init as carry_out

    carry_out(**arguments)
