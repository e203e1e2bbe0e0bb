"""Options and help of `feature-pipeline status`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.option(
    "--deep",
    is_flag=True,
    help="Also read every current manifest: counts of records and of retryable errors.",
)
@json_option
def status(**arguments: Any) -> None:
    """Show the state of each hook's batches, then what is waiting and quarantined.

    \b
    archived     have a current artifact        missing  have none
    failed       the last hook run failed and was not cancelled, or the last Dagster
                 run failed; with --deep also batches with retryable errors
    stale        made from a release, batch, input or columns that are not current
    old          made by a release other than the declared one
    damaged, lost         batches that cannot be read in the archive, and batches of which
                 a table or Dagster knows an artifact that the archive no longer has
    waiting, quarantined  completions in the inbox, and those that could not be accepted
    loaded, to load       current artifacts that the table has unchanged, and the others

    `feature-pipeline backfill --select` runs these batches. The command names failed batches,
    records that a table cannot store, and runs that wait to be repeated after an outage, with the
    reasons; with --deep, also the first errored records. Tables that no definition declares are
    named; `feature-pipeline retire` drops them. The command lists the logs and reads the tables'
    bookkeeping. It reads manifests with --deep, for hooks with inputs, and for failed runs. If
    something is damaged or lost, names it, shows the rest and exits with 2.
    """  # noqa: D301 - \b is click's mark of a paragraph that is not folded
    from feature_pipeline.cli.commands.status import status as carry_out

    carry_out(**arguments)
