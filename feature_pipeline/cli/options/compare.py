"""Options and help of `feature-pipeline compare`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hook")
@click.option("--from", "before", metavar="RELEASE", help="A version, or #seq; the one before.")
@click.option("--to", "after", metavar="RELEASE", help="A version, or #seq; the last one.")
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option("--dataset", help="The hook's dataset, where several have a hook of this name.")
@json_option
def compare(**arguments: Any) -> None:
    """Compare two releases of HOOK over the batches that both have computed.

    For each batch, reads the last artifact that was current under each release, from S3 alone. Rows
    are compared by record and ordinal. Columns that only one release declares are named and not
    compared. `feature-pipeline history HOOK` lists releases and batches.
    """
    from feature_pipeline.cli.commands.compare import compare as carry_out

    carry_out(**arguments)
