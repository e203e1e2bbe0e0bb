"""Options and help of `feature-pipeline rollback`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option("--unpin", is_flag=True, help="Follow the definition again.")
@json_option
def rollback(**arguments: Any) -> None:
    """Switch HOOK's table back to the generation before its last switch.

    The table stays pinned to that generation until --unpin; both generations are kept up to date
    meanwhile. Reports the columns that are read now to the Dagster instance of DAGSTER_HOME.
    """
    from feature_pipeline.cli.commands.rollback import rollback as carry_out

    carry_out(**arguments)
