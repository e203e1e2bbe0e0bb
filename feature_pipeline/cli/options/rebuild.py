"""Options and help of `feature-pipeline rebuild`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hooks", nargs=-1)
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option("--batch", "batches", multiple=True, help="Load only this batch again; repeatable.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--from-raw", is_flag=True, help="First decode the raw output again.")
@click.option(
    "--as-of", "time", help="A time with its offset: a separate table of what was current then."
)
@json_option
def rebuild(**arguments: Any) -> None:
    """Rebuild the tables of HOOKS, or of all hooks, from S3.

    Builds each table beside the one that users read, verifies it against the archive and switches
    to it. An interrupted rebuild continues where it stopped. With --batch, replaces the rows of
    these batches in the table that is read. Reports what was loaded to the Dagster instance of
    DAGSTER_HOME, if that is set.

    A failure with one table does not stop the others. Failures are listed at the end, and the exit
    status is 1.

    With --from-raw, first decodes the raw output of the current artifacts again with today's
    decoder. If the result differs from an artifact, a successor becomes current in the archive. No
    hook runs.
    """
    from feature_pipeline.cli.commands.rebuild import rebuild as carry_out

    carry_out(**arguments)
