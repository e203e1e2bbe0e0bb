"""Options and help of `feature-pipeline history`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hook")
@click.argument("batch", required=False)
@click.option("--dataset", help="The hook's dataset, where several have a hook of this name.")
@json_option
def history(**arguments: Any) -> None:
    """List every entry of HOOK's logs, for BATCH or for all batches.

    Marks the current artifact of each batch with *. If a log or an artifact cannot be read, shows
    the rest and exits with 2.
    """
    from feature_pipeline.cli.commands.history import history as carry_out

    carry_out(**arguments)
