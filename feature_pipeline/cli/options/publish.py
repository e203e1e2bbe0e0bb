"""Options and help of `feature-pipeline publish`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hook", required=True, help="The hook that wrote it.")
@click.option("--batch", required=True, help="The batch that it ran over, as a whole.")
@click.option("--dataset", help="The hook's dataset, if hooks of two datasets have this name.")
@click.option(
    "--log", "log_file", type=click.Path(exists=True, path_type=Path), help="The hook's log."
)
@click.option("--force", is_flag=True, help="Accept errors for records that have an answer.")
@json_option
def publish(**arguments: Any) -> None:
    """Publish FOLDER, the OSA_OUT of a hook that exited with status 0.

    The output is attributed to the hook's currently declared release. No Dagster process needs to
    run: the result is durable when the command ends, and is accepted when the daemon runs. A folder
    without features.jsonl, features.json, rejections.jsonl or errors.jsonl is refused. Output with
    errors for records that already have an answer is refused unless --force is given.
    """
    from feature_pipeline.cli.commands.publish import publish as carry_out

    carry_out(**arguments)
