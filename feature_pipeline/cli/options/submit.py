"""Options and help of `feature-pipeline submit`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option
from feature_pipeline.model.batch_source import Source


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True, help="Dataset of the records.")
@click.option(
    "--source",
    type=click.Choice([s.value for s in Source]),
    required=True,
    help="Origin of the records.",
)
@click.option("--batch", help="Key of the first batch; by default derived from the records.")
@click.option("--batch-size", default=1000, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave entries of a folder with such a name out: --exclude '.*'. May be repeated.",
)
@json_option
def submit(**arguments: Any) -> None:
    """Submit the records of PATH.

    PATH is a folder or a .jsonl file. In a folder, each file is one record, named after the file
    without its suffixes (1ubi for 1ubi.pdb.gz), and each subfolder is one record with its files.
    Each line of a .jsonl file is {"id", "metadata", "files": {name: path}}, with paths relative to
    the file. If an entry is not a record, the command names it and submits nothing. Submitting the
    same records again changes nothing.
    """
    from feature_pipeline.cli.commands.submit import submit as carry_out

    carry_out(**arguments)
