"""Options and help of `feature-pipeline erase`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("record_ids", nargs=-1)
@click.option("--dataset", required=True, help="The records' dataset.")
@click.option(
    "--reason", help="Reason, stored permanently beside the record ids: no personal data."
)
@click.option(
    "--lift",
    is_flag=True,
    help="Allow the records to be submitted again; what was begun to be erased is erased first.",
)
@click.option(
    "--lost", multiple=True, help="A manifest or batch that is given up: sha256:<digest>."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase(**arguments: Any) -> None:
    """Withdraw RECORD_IDS and erase their data from the archive. This cannot be undone.

    Without ids, completes an interrupted erasure. Exits with 2 if the erasure is incomplete:
    damaged artifacts could not be redacted, or blobs are kept because a damaged or missing object
    may need them. The records are withdrawn in either case.
    """
    from feature_pipeline.cli.commands.erase import erase as carry_out

    carry_out(**arguments)
