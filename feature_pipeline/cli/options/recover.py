"""Options and help of `feature-pipeline recover`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--local", is_flag=True, help="Run the local servers of `dev` meanwhile.")
@json_option
def recover(**arguments: Any) -> None:
    """Recover what the databases lost: partitions, materializations, pools and tables.

    Rebuilds every table with `materialize: always`, and TABLES. You can interrupt and repeat it:
    what exists is left unchanged. Ends with the proof that the tables equal the archive. Stop
    Dagster's daemon first.
    """
    from feature_pipeline.cli.commands.recover import recover as carry_out

    carry_out(**arguments)
