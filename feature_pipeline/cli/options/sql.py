"""Options and help of `feature-pipeline sql`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option

MAX_ROWS = 1_000


@click.command()
@click.argument("statement")
@click.option(
    "--max-rows", default=MAX_ROWS, show_default=True, type=click.IntRange(0), help="Rows to print."
)
@json_option
def sql(**arguments: Any) -> None:
    """Run STATEMENT, read only, and print its rows.

    Tables are in the schema `features`, which is searched first: select * from pockets limit 5
    """
    from feature_pipeline.cli.commands.sql import sql as carry_out

    carry_out(**arguments)
