"""Options and help of `feature-pipeline backfill`."""

from typing import Any

import click

from feature_pipeline.cli.option_values import SELECTIONS
from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("names", metavar="[HOOK|TABLE]...", nargs=-1)
@click.option("--select", type=click.Choice(SELECTIONS), help="State of the partitions; see above.")
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option(
    "--tables/--no-tables",
    default=None,
    help="Include tables materialized on request, or no tables. Default: only `always` tables.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, and launch nothing.")
@click.option("--cancel", metavar="ID", help="Cancel the backfill of this id instead.")
@json_option
def backfill(**arguments: Any) -> None:
    """Launch one Dagster backfill of the selected partitions.

    HOOK selects the hook's features and its table. TABLE or an asset's key
    (structures/tables/pockets) selects that asset only. Without names, all hooks of the project
    are selected.

    \b
    --select     features                         tables
    missing      batches without an artifact      artifacts that are not loaded
    failed       the last hook run or the last    the last Dagster run failed
                 Dagster run failed, or records
                 have retryable errors
    stale        stale in Dagster, or made from   stale in Dagster, or loaded from
                 a batch, input or release that   content other than the current
                 is not current                   artifact's
    old-release  made by a release other than     loaded from an artifact of a release
                 the declared one                 other than the current one's
    all          every batch                      every batch

    If the features of a partition are selected, so is its table. Runs carry over outcomes that
    the archive has, and compute only the others.
    """  # noqa: D301 - \b is click's mark of a paragraph that is not folded
    from feature_pipeline.cli.commands.backfill import backfill as carry_out

    carry_out(**arguments)
