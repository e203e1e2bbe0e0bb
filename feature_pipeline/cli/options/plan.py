"""Options and help of `feature-pipeline plan`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@json_option
def plan(**arguments: Any) -> None:
    """Preview the next runs of HOOK's table; change nothing.

    Also names tables that no definition declares; `feature-pipeline retire` drops them. Exits with
    1 if something would be refused. If batches are damaged or lost in the archive, names them,
    plans the others and exits with 2.
    """
    from feature_pipeline.cli.commands.plan import plan as carry_out

    carry_out(**arguments)
