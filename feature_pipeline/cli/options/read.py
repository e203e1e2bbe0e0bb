"""Options and help of `feature-pipeline read`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.model.status import Status


@click.command()
@click.argument("hook")
@click.option("--dataset", help="The hook's dataset, if hooks of two datasets have this name.")
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option("--outcomes", is_flag=True, help="Print the outcome of each record instead of rows.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in Status]),
    multiple=True,
    help="Only outcomes of this status, with their reasons; repeatable.",
)
@click.option("--plot", is_flag=True, help="Write a picture of the numeric columns and outcomes.")
@click.option("--column", "columns", multiple=True, help="Plot only this column; repeatable.")
@click.option("--as-of", help="A time with its offset, or a seq: what was current then.")
@click.option("--every-batch", is_flag=True, help="Records of several batches in each of them.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("--max-rows", type=click.IntRange(0), help="Stop after so many; a table after 20.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file; a plot as its .html, .png or .svg, else as HOOK.html.",
)
def read(**arguments: Any) -> None:
    """Print the rows or outcomes of HOOK's current artifacts, straight from S3.

    Needs neither PostgreSQL nor Dagster. In jsonl, arrays and objects are JSON values, and
    non-finite numbers are the strings "NaN", "Infinity" and "-Infinity".

    If batches are damaged or lost, leaves them out, names them on standard error and exits with 2.
    """
    from feature_pipeline.cli.commands.read import read as carry_out

    carry_out(**arguments)
